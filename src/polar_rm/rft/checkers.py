"""Rules that check a completion without any model: an exact answer, and form and length of the kind of IFEval."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from polar_rm.common.config import Config
from polar_rm.records import folded

_MARKED = re.compile(r"(?:####|\banswer\s*(?:is|:))\s*:?\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?(?:/\d+)?")
_MAX_DIGITS = 100

# What may stand around an answer: white space, full stops, dollars, quotes of all kinds, and the stars of bold text.
_AROUND = " .$\"'`*\u2018\u2019\u201c\u201d"


def final_answer(text: str) -> str:
    """The answer in a text: what its last ``\\boxed{}`` holds; else the rest of the line behind the last ``####``,
    ``answer is`` or ``answer:``; else the whole text.
    """
    if (boxed := _last_boxed(text)) is not None:
        return boxed.strip()
    marked = _MARKED.findall(text)
    return (marked[-1] if marked else text).strip()


def _last_boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{}`` or ``\\fbox{}`` whose braces are closed."""
    for start in reversed([found.end() for found in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += (text[position] == "{") - (text[position] == "}")
            if depth == 0:
                return text[start:position]
    return None


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are equal: as numbers if both are (``1,200`` and ``1200.0``), else up to case, white space, and
    ``$``, quotes and full stops around them.
    """
    first, second = _plain(first), _plain(second)
    numbers = _number(first), _number(second)
    return numbers[0] == numbers[1] if None not in numbers else first == second


def _plain(answer: str) -> str:
    return " ".join(folded(answer).split()).strip(_AROUND)


def _number(text: str) -> Fraction | None:
    if len(text) > _MAX_DIGITS or not _NUMBER.fullmatch(text):
        return None
    top, _, bottom = text.replace(",", "").partition("/")
    return Fraction(top) / Fraction(bottom or "1") if not bottom or int(bottom) else None


class Rules(Config):
    """Rules of form and length. Words are separated by white space; texts are searched as they are, with case."""

    min_words: NonNegativeInt | None = Field(None, description="At least this many words.")
    max_words: PositiveInt | None = Field(None, description="At most this many words.")
    contains: tuple[str, ...] = Field((), description="Texts that must occur.")
    excludes: tuple[str, ...] = Field((), description="Texts that must not occur.")
    matches: tuple[str, ...] = Field((), description="Regular expressions that must be found (Python's re.search).")
    is_json: bool = Field(False, description="The whole completion must be valid JSON; a ```json fence around it is allowed.")

    @field_validator("matches")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is more than max_words {self.max_words}")
        return self

    def broken(self, text: str) -> list[str]:
        """A few words on each rule that a text breaks, empty if it keeps all."""
        count = len(text.split())
        found = []
        if self.min_words is not None and count < self.min_words:
            found.append(f"min_words: {count} of {self.min_words}")
        if self.max_words is not None and count > self.max_words:
            found.append(f"max_words: {count}, not {self.max_words}")
        found += [f"contains: no {part!r}" for part in self.contains if part not in text]
        found += [f"excludes: {part!r} occurs" for part in self.excludes if part in text]
        found += [f"matches: no {pattern!r}" for pattern in self.matches if not re.search(pattern, text)]
        if self.is_json and not _is_json(text):
            found.append("is_json: not JSON")
        return found

    @property
    def is_empty(self) -> bool:
        """Whether there is no rule."""
        return self == Rules()


def _is_json(text: str) -> bool:
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", text, re.DOTALL)
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True
