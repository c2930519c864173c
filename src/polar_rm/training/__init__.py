"""Pre-training and fine-tuning: one training loop for two kinds of data."""
