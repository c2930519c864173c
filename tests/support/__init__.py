"""Helpers of the tests: tiny models, generated data, fake servers."""

import os

# Before anything imports huggingface_hub: no test may ask the real Hub. Tests of the Hub use the stand-in of `support.hub`.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
