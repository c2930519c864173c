"""Reinforcement fine-tuning with a reward model: one adapter per trainer (paper, section 4.3).

This file imports nothing, so that an adapter loads only its own requirements.
"""
