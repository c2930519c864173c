"""Special tokens that a user's text spells: they are dropped, until none is left."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Passes over a text before tokens that are nested deeper, as only an attacker's are, are dropped otherwise.
_USUAL_NESTING = 8


class SpecialTokens:
    """texts: those of all special tokens, longest first. characters: every character that stands in one of them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(sorted(texts, key=lambda text: (-len(text), text)))
        self.characters = frozenset("".join(self.texts))
        self._pattern = re.compile("|".join(map(re.escape, self.texts)))
        self._last = {text[-1] for text in self.texts}

    def drop(self, text: str) -> str:
        """The text without them. What is left after a removal never spells another, so no text can place a separator."""
        for _ in range(_USUAL_NESTING):
            shorter = self._pattern.sub("", text)
            if shorter == text:
                return text
            text = shorter
        return self._drop_nested(text)

    def _drop_nested(self, text: str) -> str:
        """Each token goes as soon as its last character is there: linear, where a pass for each level is quadratic."""
        longest = len(self.texts[0])
        kept: list[str] = []
        for character in text:
            kept.append(character)
            if character in self._last:
                end = "".join(kept[-longest:])
                if token := next((token for token in self.texts if end.endswith(token)), None):
                    del kept[-len(token) :]
        return "".join(kept)
