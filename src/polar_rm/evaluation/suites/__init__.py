"""Published benchmarks, one file each. The publishers' files are read unchanged and measured by the official rules."""

from collections.abc import Sequence
from pathlib import Path

from polar_rm.common.config import suggestion
from polar_rm.errors import PolarError
from polar_rm.evaluation.suites.base import Figure, Judged, References, Suite, SuiteResult
from polar_rm.evaluation.suites.helpsteer3 import HELPSTEER3
from polar_rm.evaluation.suites.if_reward_bench import IF_REWARD_BENCH
from polar_rm.evaluation.suites.judgebench import JUDGEBENCH, read_stored_scores
from polar_rm.evaluation.suites.llmbar import LLMBAR
from polar_rm.evaluation.suites.m_reward_bench import M_REWARD_BENCH
from polar_rm.evaluation.suites.ppe import PPE_BENCH
from polar_rm.evaluation.suites.reward_bench import REWARD_BENCH
from polar_rm.evaluation.suites.reward_bench_2 import REWARD_BENCH_2
from polar_rm.evaluation.suites.rm_bench import RM_BENCH
from polar_rm.evaluation.suites.rmb import RMB_BENCH
from polar_rm.evaluation.suites.verifybench import VERIFYBENCH, VERIFYBENCH_HARD

_ALL: Sequence[Suite] = (
    REWARD_BENCH,
    REWARD_BENCH_2,
    RM_BENCH,
    JUDGEBENCH,
    RMB_BENCH,
    PPE_BENCH,
    LLMBAR,
    VERIFYBENCH,
    VERIFYBENCH_HARD,
    M_REWARD_BENCH,
    HELPSTEER3,
    IF_REWARD_BENCH,
)

SUITES: dict[str, Suite] = {suite.name: suite for suite in _ALL}
"""Suites by their names on the command line."""


def find_suite(name: str) -> Suite:
    """The suite with this name. Case, hyphens, underscores and spaces (``RewardBench 2``) are ignored.

    Raises:
        PolarError: there is no such suite.
    """
    plain = {_plain(known): suite for known, suite in SUITES.items()}
    if suite := plain.get(_plain(name)):
        return suite
    raise PolarError(f"unknown suite {name!r}{suggestion(name.lower(), SUITES)}; known: {', '.join(SUITES)}")


def suites_like(path: Path) -> list[Suite]:
    """The suites whose reader takes the first row of a file or folder as it is: the path may be a published benchmark."""
    return [suite for suite in SUITES.values() if _takes_first(suite, path)]


def _takes_first(suite: Suite, path: Path) -> bool:
    try:
        return next(iter(suite.read(path)), None) is not None
    except PolarError:
        return False


def _plain(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ "))


__all__ = ["SUITES", "Figure", "Judged", "References", "Suite", "SuiteResult", "find_suite", "read_stored_scores", "suites_like"]
