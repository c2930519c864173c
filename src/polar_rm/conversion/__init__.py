"""Conversion of checkpoints: from the official layout and from other trainers to the native one, and back."""
