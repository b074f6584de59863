"""What a control loop needs, whoever runs it: a queue of keys, and work beside the loop.

One process (`embedded`) and the operator differ in what a key is, in what they see and in how they act; how turns are
given, and what is remembered of work, is the same.  What this package does not do: observe, decide or act.
"""
