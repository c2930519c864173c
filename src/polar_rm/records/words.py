"""The normalised words of a text."""

from __future__ import annotations

import re
import unicodedata

# Chinese and Japanese have no spaces, so a character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def folded(text: str) -> str:
    """The text case-folded and in NFC."""
    return unicodedata.normalize("NFC", text.casefold())


def words(text: str) -> list[str]:
    """Normalised words: lower-case letters and digits, without punctuation, with accents in NFC."""
    return _WORD.findall(folded(text))
