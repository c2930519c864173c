"""Reward models pre-trained as policy discriminators (POLAR, arXiv 2507.05197).

Nothing is imported here: ``polar_rm.records``, ``polar_rm.encoding`` and clients stay usable without torch.
"""
