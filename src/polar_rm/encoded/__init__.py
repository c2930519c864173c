"""Encoded corpora: comparisons as token ids in shards, their index, and the order in which a training reads them."""
