"""The settings that, together with the tokenizer, determine the ids of a text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from polar_rm.common.files import read_json
from polar_rm.encoding.fingerprint import VERSION
from polar_rm.errors import EncoderMismatch, PolarError

SEPARATOR_TOKEN = "<|reward|>"
REWARD_TOKEN = "[UNUSED_TOKEN_130]"
# The official client reserves this many tokens of max_length: the reward token, the separator and two newlines.
RESERVED_TOKENS = 4
# The versions of each template that checkpoints may have; new models get the last one.
VERSIONS: dict[str, tuple[int, ...]] = {"polar": (1,), "polar-chat": (1, 2)}
# Settings that the first checkpoints lack, with the value that equals the former behaviour. At this value they are left out of
# hashes and files.
_LATER = {"thinking": "keep"}


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """The settings that, together with the tokenizer, determine the ids of a text. Lengths are in tokens.

    template: ``polar`` joins the contents of messages by newlines, as the official code does; ``polar-chat`` keeps roles, so
        that system prompts and turns differ (POLAR issues 1 and 2).
    version: version of the template; 0 is the newest. ``polar-chat`` renders tool calls since its version 2.
    max_length: limit of a whole sequence. max_response_length: limit of the reference and of each candidate, with a leading BOS.
    response_cut_side: ``right`` keeps a response's first tokens (as POLAR was trained), ``left`` keeps its last tokens.
    clean_up: repeat the official slow tokenizer's clean-up of spaces before punctuation; for converted checkpoints.
    thinking: ``keep`` encodes responses unchanged; ``strip`` removes the text between ``<think>`` and ``</think>`` from the
        reference and from each candidate.

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
            known = ", ".join(f"{name} {version}" for name, numbers in VERSIONS.items() for version in numbers)
            raise PolarError(f"unknown encoder template {self.template!r} version {self.version}; known: {known}")
        if self.response_cut_side not in ("right", "left"):
            raise PolarError(f"response_cut_side must be 'right' or 'left', not {self.response_cut_side!r}")
        if self.thinking not in ("keep", "strip"):
            raise PolarError(f"thinking must be 'keep' or 'strip', not {self.thinking!r}")
        minimum = 2 * self.max_response_length + RESERVED_TOKENS
        if self.max_response_length < 1 or self.max_length < minimum:
            raise PolarError(
                f"max_length {self.max_length} cannot hold a reference and a candidate of {self.max_response_length} tokens "
                f"each: it must be at least {minimum}, or max_response_length smaller"
            )

    def to_dict(self) -> dict[str, Any]:
        """The values that checkpoints save and hashes cover. A setting that older checkpoints lack is left out at its default."""
        return {key: value for key, value in asdict(self).items() if _LATER.get(key) != value}


def settings_within(max_positions: int | None, **settings: Any) -> EncoderSettings:
    """Settings for a backbone. max_positions: its number of positions; None if there is no known limit.

    Lengths that are not given are the official ones, or shorter if the backbone has fewer positions.
    """
    official = EncoderSettings()
    length = settings.get("max_length", min(official.max_length, max_positions or official.max_length))
    response = min(official.max_response_length, length // 4)
    return EncoderSettings(**{"max_length": length, "max_response_length": response} | settings)


def saved_encoder(directory: Path) -> tuple[EncoderSettings, int, str, str]:
    """Settings, version of the fingerprint, fingerprint and hash, as ``Encoder.to_config`` saved them.

    Raises:
        PolarError: ``config.json`` has no encoder settings.
        EncoderMismatch: another version of polar saved them, or a value is invalid.
    """
    path = directory / "config.json"
    try:
        section = read_json(path)["polar"]["encoder"]
        values, saved_fingerprint, saved_hash = section["settings"], section["tokenizer"], section["hash"]
        version = section.get("fingerprint_version", 1)
        unknown = set(values) - set(EncoderSettings.__dataclass_fields__)
    except (KeyError, TypeError):
        raise PolarError(
            f"{path}: no encoder settings, so it was not saved by polar; polar evaluate and audit take other classifiers as "
            f"hf:{directory}"
        ) from None
    if unknown:
        raise EncoderMismatch(f"{path}: unknown encoder settings {sorted(unknown)}: saved by a newer version?")
    if version not in (1, VERSION):
        raise EncoderMismatch(f"{path}: unknown fingerprint_version {version!r}: saved by a newer version?")
    try:
        return EncoderSettings(**values), version, saved_fingerprint, saved_hash
    except TypeError as error:
        raise EncoderMismatch(f"{path}: encoder settings of a wrong type: {error}") from None
