"""The one encoder: every stage gets token ids, branches and score positions from here.

A comparison becomes a prefix tree. With ``⊕`` putting a newline between prompt and response (``wrapper="sft"``) or nothing
(``wrapper="pretrain"``), the sequence that is scored for one candidate is (paper, section 3 and figure 2)::

    [bos] enc(prompt ⊕ reference) <|reward|> enc(prompt ⊕ candidate) [UNUSED_TOKEN_130]

The token *named* ``<|reward|>`` separates, and the score is read at ``[UNUSED_TOKEN_130]``. Prompt and response are tokenised
together, so a merge may cross their boundary; the shared prefix is therefore the longest common prefix of the candidates' ids,
not "everything up to the prompt's end". Sharing more than the prompt costs nothing: each sequence's ids stay what they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any, Self

from tokenizers import Encoding, Tokenizer

from polar_rm.common.files import read_json
from polar_rm.encoding.settings import RESERVED_TOKENS, EncoderSettings
from polar_rm.encoding.texts import (
    CLEAN_UP,
    RenderedTexts,
    batches_of_texts,
    chat_prompt,
    chat_response,
    first_tokens,
    last_tokens,
)
from polar_rm.encoding.tokenizers import PROBE, digest, leading_ids, load_tokenizer, special_aliases
from polar_rm.encoding.tree import PrefixTree, Truncation
from polar_rm.errors import EncoderMismatch, PolarError
from polar_rm.records import Comparison, Text, flatten

# Joint ids may differ from the sum of the parts by a merge at the boundary. Below the limits by this margin nothing can be cut.
_MERGE_SLACK = 32
# A text with more characters than this for every token that it may have is hardly ever within the limit: it is tokenised for
# its cut at once. A wrong guess costs time and changes no id.
_CHARACTERS_PER_TOKEN = 6
# Passes over a text before tokens that are nested deeper, as only an attacker's are, are dropped otherwise.
_USUAL_NESTING = 8


class Encoder:
    """Comparison -> PrefixTree, with ids that do not depend on the stage that asks.

    Literal special tokens inside user text are dropped, as the official client drops them, but to a fixed point: what is left
    after a removal can never spell a special token again, so no text can place a separator or a second scoring token.
    """

    def __init__(self, tokenizer: Tokenizer, settings: EncoderSettings | None = None) -> None:
        self.settings = settings or EncoderSettings()
        self.source = tokenizer  # as given: this one is saved in checkpoints
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.bos_ids = leading_ids(self.tokenizer)
        # Without its post-processor the tokenizer adds nothing, and byte-level ones no longer trim spaces off the offsets.
        self.tokenizer.post_processor = None
        self.separator_id = self._role_id(self.settings.separator_token)
        self.reward_id = self._role_id(self.settings.reward_token)
        special = {added.content for added in self.tokenizer.get_added_tokens_decoder().values() if added.special}
        special |= {self.settings.separator_token, self.settings.reward_token}
        special |= special_aliases(self.tokenizer, special)
        self._specials = tuple(sorted(special, key=len, reverse=True))
        self._special = re.compile("|".join(map(re.escape, self._specials)))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """The encoder of a checkpoint: its tokenizer with the settings saved in ``config.json``.

        Raises:
            EncoderMismatch: the saved hash is not the hash of what is in the folder (tokenizer or settings were changed).
        """
        directory = Path(directory)
        settings, fingerprint, saved_hash = _saved(directory)
        encoder = cls(load_tokenizer(directory), settings)
        if encoder.hash != saved_hash:
            part = "tokenizer" if encoder.fingerprint != fingerprint else "settings"
            raise EncoderMismatch(
                f"{directory}: the encoder's {part} changed since the checkpoint was saved (saved hash {saved_hash}, "
                f"these files give {encoder.hash}): scores would be about other tokens"
            )
        return encoder

    def to_config(self) -> dict[str, Any]:
        """What :meth:`from_pretrained` reads back from the ``polar`` section of ``config.json``."""
        return {"settings": asdict(self.settings), "tokenizer": self.fingerprint, "hash": self.hash}

    @cached_property
    def fingerprint(self) -> str:
        """Of the tokenizer's behaviour, not of its file: libraries rewrite ``tokenizer.json`` without changing any id."""
        vocabulary = sorted(self.tokenizer.get_vocab(with_added_tokens=True).items())
        model = json.loads(self.tokenizer.to_str())["model"]
        # Merges are written as "a b" or ["a", "b"], by the library's version; the pieces of a unigram model have scores.
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
        scores = model["vocab"] if isinstance(model["vocab"], list) else []
        return digest([vocabulary, merges, scores, self._ids([PROBE])[0], self.bos_ids])

    @cached_property
    def hash(self) -> str:
        """Names the function from text to ids; equal hashes mean equal ids for every text."""
        return digest([asdict(self.settings), self.fingerprint])

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token; a text of n times as many has more than n tokens."""
        return max(map(len, self.tokenizer.get_vocab(with_added_tokens=True)))

    def ids(self, text: str) -> list[int]:
        """Of a text as it is: special tokens in it become their ids, and no BOS is added.

        Raises:
            PolarError: the text is not valid Unicode.
        """
        return self._ids([text])[0]

    def encode(self, comparison: Comparison) -> PrefixTree:
        """One comparison; all its candidates share one prompt cut, which the longest of them decides."""
        return self.encode_many([comparison])[0]

    def encode_many(self, comparisons: Sequence[Comparison]) -> list[PrefixTree]:
        """Like :meth:`encode`, tokenised as one batch on all cores."""
        trees: list[PrefixTree] = []
        fields = [self._fields(c.prompt, c.reference, c.candidates, c.wrapper) for c in comparisons]
        for comparison, field, uncut in zip(comparisons, fields, self._uncut_ids(fields), strict=True):
            if uncut:
                trees.append(self._uncut_tree(uncut, comparison.ranks))
            else:
                [(_, tree)] = self._encode_cut(field, comparison.ranks, shared_cut=True)
                trees.append(tree)
        return trees

    def encode_outputs(
        self, prompt: Text, reference: Text | None, outputs: Sequence[Text], wrapper: str = "sft"
    ) -> list[tuple[list[int], PrefixTree]]:
        """Trees for scoring, each with the indices of its outputs; an output's ids never depend on its neighbours.

        Where the prompt has to be cut, every output gets the cut that it would get alone (as in the official client), and
        only outputs with the same cut share a tree.
        """
        field = self._fields(prompt, reference, outputs, wrapper)
        ranks = (0,) * len(outputs)
        [uncut] = self._uncut_ids([field])
        if uncut:
            return [(list(range(len(outputs))), self._uncut_tree(uncut, ranks))]
        return self._encode_cut(field, ranks, shared_cut=False)

    def with_identical(self, tree: PrefixTree) -> PrefixTree:
        """The same comparison with its reference in the place of its best candidate (the first of several).

        The ids are those of encoding it so, under this tree's cut of the prompt. Unchanged where ``max_length`` can't hold the
        reference twice.
        """
        start = len(self.bos_ids)
        end = tree.prefix.index(self.separator_id, start)
        reference_ids, shared = tree.prefix[start:end], tree.prefix[end + 1 :]
        if start + 2 * len(reference_ids) + 2 > self.settings.max_length:
            return tree
        candidate_ids = [[*shared, *branch[:-1]] for branch in tree.branches]
        candidate_ids[tree.ranks.index(min(tree.ranks))] = reference_ids
        return self._tree(reference_ids, candidate_ids, tree.ranks, tree.truncation)

    def _role_id(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise PolarError(f"the tokenizer has no token {token!r}; build the reward model first, which adds it")
        if self.tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
            raise PolarError(f"the tokenizer splits {token!r} into pieces; it must be one special token")
        return int(token_id)

    def _fields(self, prompt: Text, reference: Text | None, candidates: Sequence[Text], wrapper: str) -> RenderedTexts:
        if reference is None:
            raise PolarError("the comparison has no reference; give one, or an empty string to score without")
        chat = self.settings.template == "polar-chat" and wrapper == "sft"
        response = chat_response if chat else flatten
        return RenderedTexts(
            self._drop_special(chat_prompt(prompt) if chat else flatten(prompt)),
            self._drop_special(response(reference)),
            [self._drop_special(response(candidate)) for candidate in candidates],
            "\nassistant: " if chat else "\n" if wrapper == "sft" else "",
        )

    def _drop_special(self, text: str) -> str:
        for _ in range(_USUAL_NESTING):
            shorter = self._special.sub("", text)
            if shorter == text:
                return text
            text = shorter
        return self._drop_nested(text)

    def _drop_nested(self, text: str) -> str:
        """Each token goes as soon as its last character is there: linear, where a pass for each level is quadratic."""
        last = {token[-1] for token in self._specials}
        longest = len(self._specials[0])
        kept: list[str] = []
        for character in text:
            kept.append(character)
            if character in last:
                end = "".join(kept[-longest:])
                if token := next((token for token in self._specials if end.endswith(token)), None):
                    del kept[-len(token) :]
        return "".join(kept)

    def _clean(self, text: str) -> str:
        if self.settings.clean_up:
            # SentencePiece writes spaces so, and its decoder makes one of a literal sign.
            text = text.replace("▁", " ")
            for spaced, closed in CLEAN_UP:
                text = text.replace(spaced, closed)
        return text

    def _joint(self, field: RenderedTexts, prompt: str, reference: str, candidates: Sequence[str]) -> list[str]:
        """``prompt ⊕ response`` for the reference and each candidate. An empty response gets no newline (as in training)."""
        prompt = self._clean(prompt)
        responses = [self._clean(response) for response in (reference, *candidates)]
        # Dropped again because prompt and response can spell a special token across their boundary.
        return [self._drop_special(prompt + field.glue + response if response else prompt) for response in responses]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encoded = (self.tokenizer.encode_batch_fast(batch, add_special_tokens=False) for batch in batches_of_texts(texts))
            return [encoding.ids for batch in encoded for encoding in batch]
        except (TypeError, UnicodeError) as error:
            raise PolarError(f"a text is not valid Unicode (a lone surrogate?): {error}") from error

    def _uncut_ids(self, fields: Sequence[RenderedTexts]) -> list[list[list[int]] | None]:
        """Joint ids of reference and candidates, tokenised as one batch; None where something may have to be cut."""
        response, prompt = (
            _CHARACTERS_PER_TOKEN * n_tokens for n_tokens in (self.settings.max_response_length, self.settings.max_length)
        )
        joint = {
            number: self._joint(field, field.prompt, field.reference, field.candidates)
            for number, field in enumerate(fields)
            if max(map(len, (field.reference, *field.candidates))) <= response and len(field.prompt) <= prompt
        }
        tokenised = iter(self._ids([text for texts in joint.values() for text in texts]))
        ids = {number: [next(tokenised) for _ in texts] for number, texts in joint.items()}
        return [ids[number] if number in ids and self._surely_fits(*ids[number]) else None for number in range(len(fields))]

    def _surely_fits(self, reference_ids: list[int], *candidate_ids: list[int]) -> bool:
        longest = max(map(len, candidate_ids))
        response_limit = self.settings.max_response_length - _MERGE_SLACK
        length_limit = self.settings.max_length - RESERVED_TOKENS - _MERGE_SLACK
        return max(len(reference_ids), longest) <= response_limit and len(reference_ids) + longest <= length_limit

    def _encode_cut(
        self, field: RenderedTexts, ranks: tuple[int, ...], *, shared_cut: bool
    ) -> list[tuple[list[int], PrefixTree]]:
        """The general case: cut each response to its limit, then the prompt to what the two leave."""
        prompt, *responses = self.tokenizer.encode_batch(
            [field.prompt, field.reference, *field.candidates], add_special_tokens=False
        )
        (reference, n_reference, reference_cut), *cut_candidates = map(
            self._cut_response, [field.reference, *field.candidates], responses
        )
        budgets = [
            (self.settings.max_length - RESERVED_TOKENS - n_reference - n_candidate) // 2 for _, n_candidate, _ in cut_candidates
        ]
        keeps = [max(0, min(len(prompt.ids), min(budgets) if shared_cut else budget)) for budget in budgets]
        trees = []
        for keep in dict.fromkeys(keeps):
            indices = [i for i, other in enumerate(keeps) if other == keep]
            candidates = [cut_candidates[i][0] for i in indices]
            candidate_cuts = tuple(cut_candidates[i][2] for i in indices)
            kept = keep
            while True:
                text = last_tokens(field.prompt, prompt.offsets, kept)
                reference_ids, *candidate_ids = self._ids(self._joint(field, text, reference, candidates))
                cut = Truncation(len(prompt.ids) - kept, reference_cut, candidate_cuts)
                tree = self._tree(reference_ids, candidate_ids, tuple(ranks[i] for i in indices), cut)
                # Cutting can undo merges, so the joint ids may be longer than their parts were; the prompt stands in twice.
                excess = len(tree.prefix) + max(map(len, tree.branches)) - self.settings.max_length
                if excess <= 0:
                    break
                if kept == 0:
                    raise PolarError(
                        f"a sequence is {excess} tokens over max_length {self.settings.max_length} without its prompt"
                    )
                kept = max(0, kept - (excess + 1) // 2)
            trees.append((indices, tree))
        return trees

    def _cut_response(self, text: str, encoding: Encoding) -> tuple[str, int, int]:
        """The text within ``max_response_length`` tokens, its length in tokens and the tokens cut.

        The official client counts a BOS in every field; a cut from the left takes that BOS away first.
        """
        n_tokens, n_bos, limit = len(encoding.ids), len(self.bos_ids), self.settings.max_response_length
        if n_tokens + n_bos <= limit:
            return text, n_tokens + n_bos, 0
        if self.settings.response_cut_side == "right":
            return first_tokens(text, encoding.offsets, limit - n_bos), limit, n_tokens + n_bos - limit
        return last_tokens(text, encoding.offsets, min(n_tokens, limit)), limit, max(0, n_tokens - limit)

    def _uncut_tree(self, ids: list[list[int]], ranks: tuple[int, ...]) -> PrefixTree:
        return self._tree(ids[0], ids[1:], ranks, Truncation(candidates=(0,) * len(ranks)))

    def _tree(
        self, reference_ids: list[int], candidate_ids: list[list[int]], ranks: tuple[int, ...], truncation: Truncation
    ) -> PrefixTree:
        shared = commonprefix(candidate_ids)
        prefix = [*self.bos_ids, *reference_ids, self.separator_id, *shared]
        branches = [[*ids[len(shared) :], self.reward_id] for ids in candidate_ids]
        return PrefixTree(prefix, branches, ranks, truncation)


def _saved(directory: Path) -> tuple[EncoderSettings, str, str]:
    """Settings, the tokenizer's fingerprint and the hash of both, as :meth:`Encoder.to_config` gave them."""
    path = directory / "config.json"
    try:
        section = read_json(path)["polar"]["encoder"]
        values, fingerprint, saved_hash = section["settings"], section["tokenizer"], section["hash"]
        unknown = set(values) - set(EncoderSettings.__dataclass_fields__)
    except (KeyError, TypeError):
        raise PolarError(f"{path}: no encoder settings; is this a reward model saved by polar?") from None
    if unknown:
        raise EncoderMismatch(f"{path}: unknown encoder settings {sorted(unknown)}: saved by a newer version?")
    try:
        return EncoderSettings(**values), fingerprint, saved_hash
    except TypeError as error:
        raise EncoderMismatch(f"{path}: encoder settings of a wrong type: {error}") from None
