"""Plots, measures and pages of results."""
