"""Checkpoint formats: native (stock transformers sequence classification)."""
