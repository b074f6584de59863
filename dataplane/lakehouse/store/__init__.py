"""Object stores: one protocol, and the memory, directory and S3 behind it."""
