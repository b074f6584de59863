"""Long work of declared resources in a process of its own: one task in, one outcome out, harmless to repeat."""
