"""Shards that other processes keep: where they are, what is said to them, and how a lost answer is met."""
