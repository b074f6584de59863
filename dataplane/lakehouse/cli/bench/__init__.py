"""The benchmark: our server over HTTP beside hnswlib in a process of its own, on the same rows, in the same run.

Speed is CPU time per query, not wall time, because it stays what it is on a busy machine; both sides take turns, and
each speed stands beside its recall.
"""
