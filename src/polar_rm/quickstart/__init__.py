"""The whole job at toy size, on packaged data."""
