"""Official and other trainers' checkpoints to native ones, and back."""
