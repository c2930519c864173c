"""Parity: the same items must get the same ids and the same scores on every route by which a reward is computed."""

from polar_rm.parity.report import Parity, render
from polar_rm.parity.routes import check

__all__ = ["Parity", "check", "render"]
