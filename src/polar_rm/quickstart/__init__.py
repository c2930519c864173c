"""The complete pipeline at toy size, on packaged data."""
