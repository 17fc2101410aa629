"""A real base model with the real seeds through all eight stages, at a small size."""
