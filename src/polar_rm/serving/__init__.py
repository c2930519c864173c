"""The reward server (``polar serve``)."""
