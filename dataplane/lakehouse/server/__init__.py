"""HTTP: the contract of the old system and what goes beyond it."""
