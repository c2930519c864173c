"""Sequences that arrive ready made, as rendered text or as ids: tokenised as an engine would, checked, joined into trees.

The rendered form of an item is what the official client sends (see :mod:`polar_rm.encoding`)::

    prompt ⊕ reference <|reward|> prompt ⊕ candidate [UNUSED_TOKEN_130]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Self

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import PolarError

Group = tuple[tuple[int, ...], bool]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Checked ids of one item in two parts, of which the second ends in the reward token. Those of one ``group`` share a tree.

    ends_with_prompt: whether the head ends where the ids of the prompt end behind the separator; then its tree shares the head
    and nothing more (see :meth:`Encoder.encode_outputs`). Otherwise, since nobody has told where the prompt ends, the head ends
    in the separator, and its tree shares what else its tails agree on.
    """

    head: tuple[int, ...]
    tail: list[int]
    ends_with_prompt: bool = False

    @property
    def group(self) -> Group:
        """Names the tree that this sequence can be a branch of."""
        return self.head, self.ends_with_prompt

    @classmethod
    def from_ids(cls, ids: Sequence[int], encoder: Encoder, *, shared: int | None = None) -> Self:
        """Ids from outside. shared: where the ids of the prompt end, if that is known: the prefix of the item's tree.

        Raises:
            PolarError: too long, an id that is none of the vocabulary, or not one separator and the reward token at the end.
                Such ids would get a number, but not a reward.
        """
        limit = encoder.settings.max_length
        if len(ids) > limit:
            raise PolarError(f"{len(ids)} tokens, more than max_length {limit}; cut before sending, the end holds the score")
        bad = next((token for token in ids if not 0 <= token < encoder.vocabulary_size), None)
        if bad is not None:
            raise PolarError(f"token id {bad} is not in the vocabulary (0 to {encoder.vocabulary_size - 1})")
        if not ids or ids[-1] != encoder.reward_id:
            raise PolarError(
                f"the last token must be {encoder.settings.reward_token!r} (id {encoder.reward_id}), where the score is read"
            )
        separators = ids.count(encoder.separator_id)
        if separators != 1:
            name = encoder.settings.separator_token
            raise PolarError(f"expected one separator {name!r} (id {encoder.separator_id}), found {separators}")
        end = ids.index(encoder.separator_id) + 1 if shared is None else shared
        return cls(tuple(ids[:end]), list(ids[end:]), shared is not None)

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)


def tokenize(text: str, encoder: Encoder, *, add_bos: bool = True) -> list[int]:
    """Ids of one rendered text as an engine gives them (see :meth:`Encoder.ids_of_rendered`).

    Raises:
        PolarError: the text is not valid Unicode, or certainly longer than ``max_length``.
    """
    return encoder.ids_of_rendered(text, add_bos=add_bos)


def render(ids: Sequence[int], encoder: Encoder) -> str:
    """The text that :func:`tokenize` turns into these ids.

    Raises:
        PolarError: there is none, because the tokenizer would merge the text into other ids: send the ids.
    """
    text: str = encoder.tokenizer.decode(list(ids[len(encoder.bos_ids) :]), skip_special_tokens=False)
    if tokenize(text, encoder) != list(ids):
        raise PolarError("this item has no text that gives its token ids (a cut inside a word); send token ids")
    return text


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return len(commonprefix([list(first), list(second)]))


def join(sequences: Sequence[TokenSequence]) -> PrefixTree:
    """The tree of sequences of one group."""
    first = sequences[0]
    shared = 0 if first.ends_with_prompt else None
    return PrefixTree.of(first.head, [sequence.tail for sequence in sequences], (0,) * len(sequences), shared=shared)
