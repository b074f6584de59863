"""Vectors in memory: immutable HNSW segments, an exact tail, a filter planner.  CPU only, no object store."""
