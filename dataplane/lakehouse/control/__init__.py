"""The declarative half, pure: kinds, conditions, schedules, and what to do about what was seen."""
