"""Helpers of the tests: tiny models, generated data, fake servers."""
