"""Pre-training and fine-tuning: one loop, two kinds of data."""
