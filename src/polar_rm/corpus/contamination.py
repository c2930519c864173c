"""Decontamination: finding prompts that share words with prompts of evaluation data, and texts with held-out texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polar_rm.corpus.results import Match
from polar_rm.records import Text, find_files, flatten, prompt_key, read_prompt_texts, words
from polar_rm.records.ngrams import Hashes, ngram_hashes


@dataclass(frozen=True, slots=True)
class EvaluationIndex:
    """The n-grams of evaluation prompts as sorted 64-bit hashes; ``origins[i]`` is the (file, row) of ``hashes[i]``.

    short: prompts of fewer than n words, by all their words. They match only prompts with exactly these words, because a few
    shared words are no evidence.
    """

    n: int
    hashes: Hashes
    origins: NDArray[np.int64]  # [n_grams, 2]
    short: dict[str, tuple[int, int]]
    files: tuple[str, ...]

    def match(self, prompt: Text) -> Match | None:
        """The first shared n-gram and the evaluation prompt that contains it; None if there is none."""
        text = flatten(prompt)
        if origin := self.short.get(_whole(text)):
            return {"words": text, "file": self.files[origin[0]], "row": origin[1]}
        prompt_words = words(text)
        grams = ngram_hashes(prompt_words, self.n)
        if not len(self.hashes) or not len(grams):
            return None
        positions = np.minimum(np.searchsorted(self.hashes, grams), len(self.hashes) - 1)
        hits = np.flatnonzero(self.hashes[positions] == grams)
        if not len(hits):
            return None
        file, row = self.origins[positions[hits[0]]]
        return {"words": " ".join(prompt_words[hits[0] : hits[0] + self.n]), "file": self.files[file], "row": int(row)}


def index_evaluations(sources: Sequence[str], n: int) -> EvaluationIndex:
    """Index the prompts of evaluation files, whose rows need a column ``prompt``.

    Raises:
        PolarError: a file can't be read, or a row has no prompt.
    """
    files = [file for source in sources for file in find_files(source)]
    return index_texts(_evaluation_prompts(files), files, n)


def _evaluation_prompts(files: Sequence[Path]) -> Iterator[tuple[int, int, str]]:
    """The distinct prompts of each file."""
    for number, file in enumerate(files):
        seen: set[str] = set()
        for row, prompt in enumerate(read_prompt_texts(file), 1):
            text = flatten(prompt)
            if text not in seen:
                seen.add(text)
                yield number, row, text


def index_texts(texts: Iterable[tuple[int, int, str]], files: Sequence[Path], n: int) -> EvaluationIndex:
    """Index texts. texts: (index of the file, row, text)."""
    hashes, origins = [np.empty(0, np.uint64)], [np.empty((0, 2), np.int64)]
    short: dict[str, tuple[int, int]] = {}
    for number, row, text in texts:
        grams = ngram_hashes(words(text), n)
        hashes.append(grams)
        origins.append(np.tile(np.array([[number, row]]), (len(grams), 1)))
        if not len(grams):
            short.setdefault(_whole(text), (number, row))
    unique, first = np.unique(np.concatenate(hashes), return_index=True)
    return EvaluationIndex(n, unique, np.concatenate(origins)[first], short, tuple(map(str, files)))


def _whole(text: str) -> str:
    """The key of a short prompt: its words, or its normalised text if it has no words."""
    return " ".join(words(text)) or prompt_key(text)
