"""Everything that decides which ids a text becomes, apart from the tokenizer itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polar_rm.errors import PolarError

SEPARATOR_TOKEN = "<|reward|>"
REWARD_TOKEN = "[UNUSED_TOKEN_130]"
# The official client reserves this much of max_length: the reward token, the separator and two newlines.
RESERVED_TOKENS = 4


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """All that decides which ids a text becomes, apart from the tokenizer itself. Lengths are in tokens.

    template: ``polar`` joins the contents of messages by newlines, as the official code does; ``polar-chat`` keeps roles, so
        that system prompts and turns are told apart (POLAR issues 1 and 2).
    max_length: of one whole sequence. max_response_length: of the reference and of each candidate, a leading BOS counted.
    response_cut_side: ``right`` keeps a response's first tokens (what POLAR was trained with), ``left`` its last.
    clean_up: repeat the official slow tokenizer's clean-up of spaces before punctuation; for converted checkpoints.
    """

    template: Literal["polar", "polar-chat"] = "polar"
    version: int = 1
    max_length: int = 16384
    max_response_length: int = 4096
    response_cut_side: Literal["right", "left"] = "right"
    clean_up: bool = False
    separator_token: str = SEPARATOR_TOKEN
    reward_token: str = REWARD_TOKEN

    def __post_init__(self) -> None:
        if self.template not in ("polar", "polar-chat") or self.version != 1:
            raise PolarError(f"unknown encoder template {self.template!r} version {self.version}; known: polar 1, polar-chat 1")
        if self.response_cut_side not in ("right", "left"):
            raise PolarError(f"response_cut_side must be 'right' or 'left', not {self.response_cut_side!r}")
        shortest = 2 * self.max_response_length + RESERVED_TOKENS
        if self.max_response_length < 1 or self.max_length < shortest:
            raise PolarError(
                f"max_length {self.max_length} cannot hold a reference and a candidate of {self.max_response_length} tokens "
                f"each: it must be at least {shortest}, or max_response_length smaller"
            )
