"""Items that arrive as rendered text or as ids. They are tokenised as an engine would, checked, and joined into trees.

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

Group = tuple[tuple[int, ...], bool, int | None]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Checked ids of one item as head and tail; the tail ends in the reward token. Items of one ``group`` share a tree.

    ends_with_prompt: whether the head ends with the ids of the prompt after the separator. If so, the tree shares only the head
    (see :meth:`Encoder.encode_outputs`). Otherwise the end of the prompt is unknown: the head ends in the separator, and the tree
    also shares the common prefix of the tails. conversation: a number that only the turns of one conversation have: they share a
    tree of their own, in which each turn continues the one before.
    """

    head: tuple[int, ...]
    tail: list[int]
    ends_with_prompt: bool = False
    conversation: int | None = None

    @property
    def group(self) -> Group:
        """The key of the tree that this sequence can be a branch of."""
        return self.head, self.ends_with_prompt, self.conversation

    @classmethod
    def from_ids(cls, ids: Sequence[int], encoder: Encoder, *, shared: int | None = None) -> Self:
        """Check ids from outside. shared: the position after the ids of the prompt, if known; the tree's prefix ends there.

        Raises:
            PolarError: the ids are too many, one is not in the vocabulary, they do not hold exactly one separator, or they do not
                end in the reward token. The model's output for such ids would not be a reward.
        """
        limit = encoder.settings.max_length
        if len(ids) > limit:
            raise PolarError(
                f"{len(ids)} tokens, more than max_length {limit}; truncate before sending, because the score is read at the end"
            )
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
    """The ids of one rendered text as an engine computes them (see :meth:`Encoder.ids_of_rendered`).

    Raises:
        PolarError: the text is not valid Unicode, or certainly longer than ``max_length``.
    """
    return encoder.ids_of_rendered(text, add_bos=add_bos)


def render(ids: Sequence[int], encoder: Encoder) -> str:
    """The text that :func:`tokenize` turns into these ids.

    Raises:
        PolarError: there is no such text, because the tokenizer would merge it into other ids; send the ids instead.
    """
    text: str = encoder.tokenizer.decode(list(ids[len(encoder.bos_ids) :]), skip_special_tokens=False)
    if tokenize(text, encoder) != list(ids):
        raise PolarError("no text has these token ids (the item was truncated inside a word); send token ids")
    return text


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    return len(commonprefix([list(first), list(second)]))


def join(sequences: Sequence[TokenSequence]) -> PrefixTree:
    """The tree of sequences of one group.

    The prefix of a lone sequence ends where its tail stops repeating the head, which begins with the prompt: there other
    candidates of the group leave it, which may come later.
    """
    first = sequences[0]
    if first.ends_with_prompt:
        shared = 0
    elif len(sequences) == 1:
        repeated = max(shared_length(first.head[skipped:], first.tail) for skipped in (0, 1))  # 1: without [bos]
        shared = min(repeated, len(first.tail) - 1)
    else:
        shared = None
    tree = PrefixTree.of(first.head, [sequence.tail for sequence in sequences], (0,) * len(sequences), shared=shared)
    return tree if first.conversation is None else tree.nested()
