"""Rewards and failures of items, named transforms of raw rewards, and calibration cards."""
