"""What becomes of one item, and named transforms of raw rewards."""
