"""The reward model: a stock transformers backbone, a bias-free linear head, and attention over prefix trees."""
