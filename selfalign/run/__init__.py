"""A run: plan, decide, drive, and what people read of it."""
