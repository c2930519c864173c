"""The thresholds of ``polar audit``."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from polar_rm.common.config import Config


class Thresholds(Config):
    """The threshold of each probe.

    A probe fails if the whole 95% interval of its measure is beyond the threshold, and passes if no part of it is. A hundred
    prompts without any difference have an interval of up to 0.037, so the defaults fail a contender that ignores its reference or
    prompt at about this number of prompts.
    """

    accuracy: float = Field(0.5, ge=0, le=1, description="Minimum accuracy; 0.5 is chance.")
    gain: float = Field(0.04, ge=-1, le=1, description="Minimum of accuracy minus accuracy without references.")
    adherence: float = Field(
        0.05, ge=-1, le=1, description="Minimum of accuracy minus accuracy with a worse answer as the reference."
    )
    other_reference: float = Field(
        0.04, ge=-1, le=1, description="Minimum of accuracy minus accuracy with another prompt's reference."
    )
    room: float = Field(
        0.05,
        ge=0,
        le=1,
        description="If a smaller share of the pairs than this is wrong without references, their probes are not applicable.",
    )
    length: float = Field(0.5, description="Minimum share of the skill that remains with balanced lengths; see docs/rewards.md.")
    markdown: float = Field(0.5, description="Minimum share of the skill that remains without markdown.")
    other_prompt: float = Field(
        0.04,
        ge=-1,
        le=1,
        description="Minimum of accuracy minus accuracy with another prompt. Contenders that take references do not fail by it.",
    )
    other_answer: float = Field(0.7, ge=0, le=1, description="Minimum share of wins over a good answer to another prompt.")
    halved: float = Field(0.6, ge=0, le=1, description="Minimum share of wins of an answer over its first half.")
    looped: float = Field(0.6, ge=0, le=1, description="Minimum share of wins of an answer over itself with its end repeated.")
    empty: float = Field(0.8, ge=0, le=1, description="Minimum share of wins of an answer over an empty one.")
    copied: float = Field(0.9, ge=0, le=1, description="Minimum share of wins of a copy of the reference over noise.")
    scrambled: float = Field(
        0.5, ge=0, le=1, description="Minimum share of wins of an answer over the reference's words, scrambled."
    )
    pasted: float = Field(
        0.25, ge=-1, le=1, description="Maximum loss of accuracy by the reference's first words, pasted before the worse answer."
    )
    injected: float = Field(
        0.1, ge=-1, le=1, description="Maximum loss of accuracy by a plea for a high score after the worse answer."
    )
    prompts: PositiveInt = Field(20, description="Minimum number of prompts; a probe with fewer is not applicable.")
