"""Sampling trajectories from a zoo of policies."""
