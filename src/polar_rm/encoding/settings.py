"""Everything that decides which ids a text becomes, apart from the tokenizer itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from polar_rm.common.files import read_json
from polar_rm.encoding.fingerprint import VERSION
from polar_rm.errors import EncoderMismatch, PolarError

SEPARATOR_TOKEN = "<|reward|>"
REWARD_TOKEN = "[UNUSED_TOKEN_130]"
# The official client reserves this much of max_length: the reward token, the separator and two newlines.
RESERVED_TOKENS = 4
# Versions of each template that checkpoints may have; the last is the one of new models.
VERSIONS: dict[str, tuple[int, ...]] = {"polar": (1,), "polar-chat": (1, 2)}
# Settings that came after the first checkpoints: left out of names and files where they say what was true before them.
_LATER = {"thinking": "keep"}


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """All that decides which ids a text becomes, apart from the tokenizer itself. Lengths are in tokens.

    template: ``polar`` joins the contents of messages by newlines, as the official code does; ``polar-chat`` keeps roles, so
        that system prompts and turns are told apart (POLAR issues 1 and 2).
    version: of the template; 0 stands for its newest. ``polar-chat`` renders tool calls since its version 2.
    max_length: of one whole sequence. max_response_length: of the reference and of each candidate, a leading BOS counted.
    response_cut_side: ``right`` keeps a response's first tokens (what POLAR was trained with), ``left`` its last.
    clean_up: repeat the official slow tokenizer's clean-up of spaces before punctuation; for converted checkpoints.
    thinking: ``keep`` encodes responses as they are; ``strip`` leaves out what stands between ``<think>`` and ``</think>``, of
        the reference and of each candidate alike.

    Raises:
        PolarError: an unknown template, version or choice, or lengths that can't hold two responses.
    """

    template: Literal["polar", "polar-chat"] = "polar"
    version: int = 0
    max_length: int = 16384
    max_response_length: int = 4096
    response_cut_side: Literal["right", "left"] = "right"
    clean_up: bool = False
    separator_token: str = SEPARATOR_TOKEN
    reward_token: str = REWARD_TOKEN
    thinking: Literal["keep", "strip"] = "keep"

    def __post_init__(self) -> None:
        versions = VERSIONS.get(self.template, ())
        if self.version == 0 and versions:
            object.__setattr__(self, "version", versions[-1])
        if self.version not in versions:
            known = ", ".join(f"{name} {version}" for name, each in VERSIONS.items() for version in each)
            raise PolarError(f"unknown encoder template {self.template!r} version {self.version}; known: {known}")
        if self.response_cut_side not in ("right", "left"):
            raise PolarError(f"response_cut_side must be 'right' or 'left', not {self.response_cut_side!r}")
        if self.thinking not in ("keep", "strip"):
            raise PolarError(f"thinking must be 'keep' or 'strip', not {self.thinking!r}")
        shortest = 2 * self.max_response_length + RESERVED_TOKENS
        if self.max_response_length < 1 or self.max_length < shortest:
            raise PolarError(
                f"max_length {self.max_length} cannot hold a reference and a candidate of {self.max_response_length} tokens "
                f"each: it must be at least {shortest}, or max_response_length smaller"
            )

    def to_dict(self) -> dict[str, Any]:
        """What checkpoints save and hashes are taken of: a setting that older ones lack is left out at its default."""
        return {key: value for key, value in asdict(self).items() if _LATER.get(key) != value}


def settings_within(max_positions: int | None, **settings: Any) -> EncoderSettings:
    """Settings for a backbone of so many positions: lengths that are not given are the official ones, or shorter where it has
    fewer. None: no limit is known."""
    official = EncoderSettings()
    length = settings.get("max_length", min(official.max_length, max_positions or official.max_length))
    response = min(official.max_response_length, length // 4)
    return EncoderSettings(**{"max_length": length, "max_response_length": response} | settings)


def saved_encoder(directory: Path) -> tuple[EncoderSettings, int, str, str]:
    """Settings, version of the fingerprint, fingerprint and hash, as ``Encoder.to_config`` gave them.

    Raises:
        PolarError: ``config.json`` has none.
        EncoderMismatch: they are of another version.
    """
    path = directory / "config.json"
    try:
        section = read_json(path)["polar"]["encoder"]
        values, saved_fingerprint, saved_hash = section["settings"], section["tokenizer"], section["hash"]
        version = section.get("fingerprint_version", 1)
        unknown = set(values) - set(EncoderSettings.__dataclass_fields__)
    except (KeyError, TypeError):
        raise PolarError(f"{path}: no encoder settings; is this a reward model saved by polar?") from None
    if unknown:
        raise EncoderMismatch(f"{path}: unknown encoder settings {sorted(unknown)}: saved by a newer version?")
    if version not in (1, VERSION):
        raise EncoderMismatch(f"{path}: unknown fingerprint_version {version!r}: saved by a newer version?")
    try:
        return EncoderSettings(**values), version, saved_fingerprint, saved_hash
    except TypeError as error:
        raise EncoderMismatch(f"{path}: encoder settings of a wrong type: {error}") from None
