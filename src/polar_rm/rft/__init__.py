"""Reinforcement fine-tuning with a reward model: one adapter per trainer (paper, section 4.3). Nothing is imported here."""
