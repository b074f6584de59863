"""The declarative mode in one process: observe everything, decide purely, do what the decision says, and look again.

Every decision is `lakehouse.control`'s, the same that an operator makes; here is only what one process sees and how it
starts work.  Whatever happens, a message or a timer or a restart, leads to the same `converge`, so a crash at any step
is one more beginning.  What this package does not do: serve (`lakehouse.server`) or decide (`lakehouse.control`).
"""
