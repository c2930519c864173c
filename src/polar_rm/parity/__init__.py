"""Same ids and same score everywhere: one set of items through every route by which a reward is computed."""

from polar_rm.parity.report import Parity, render
from polar_rm.parity.routes import check

__all__ = ["Parity", "check", "render"]
