"""A deterministic world to test the engine in; shipped, so that users can test theirs."""
