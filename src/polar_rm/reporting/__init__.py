"""Plots, measures and HTML pages of results."""
