"""Removes special tokens from users' texts until none is left."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The number of passes over a text. Another algorithm drops tokens that are nested deeper, which only an attacker writes.
_USUAL_NESTING = 8


class SpecialTokens:
    """The special tokens of a tokenizer. texts: their texts, longest first. characters: all characters of these texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(sorted(texts, key=lambda text: (-len(text), text)))
        self.characters = frozenset("".join(self.texts))
        self._pattern = re.compile("|".join(map(re.escape, self.texts)))
        self._last = {text[-1] for text in self.texts}

    def drop(self, text: str) -> str:
        """The text without special tokens. The result never contains one, so no text can insert a separator."""
        for _ in range(_USUAL_NESTING):
            shorter = self._pattern.sub("", text)
            if shorter == text:
                return text
            text = shorter
        return self._drop_nested(text)

    def _drop_nested(self, text: str) -> str:
        """Drop each token when its last character arrives. This takes linear time; one pass for each level would be quadratic."""
        longest = len(self.texts[0])
        kept: list[str] = []
        for character in text:
            kept.append(character)
            if character in self._last:
                end = "".join(kept[-longest:])
                if token := next((token for token in self.texts if end.endswith(token)), None):
                    del kept[-len(token) :]
        return "".join(kept)
