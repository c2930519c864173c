"""The most that a user's number may be where memory, files or processes are made of it: a slip of a digit is told at once."""

from __future__ import annotations

MAX_ROW_TOKENS = 1 << 24
"""Tokens of a packed row, and of a sequence: more than any device holds the activations of."""
MAX_FILES = 99_999
"""Files that one output is spread over: their names have five digits."""
MAX_BATCH = 1 << 14
"""Sequences that are generated together, and requests that are under way together."""
MAX_RANK = 1 << 16
"""Rank of adapters: no layer of a model is as wide."""
MAX_ACTORS = 1 << 16
"""Processes of a cluster."""
MAX_RESAMPLES = 100_000
"""Samples of a bootstrap."""
