"""The pure middle: values and decisions, no I/O, no clock, no chance."""
