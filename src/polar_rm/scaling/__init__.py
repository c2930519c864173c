"""Scaling laws: a grid of sizes and token budgets, its runs with learning rates tuned per size, and power laws with intervals."""
