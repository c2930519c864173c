"""The one encoder: all stages get their token ids, branches and score positions here.

A comparison becomes a prefix tree. The operator ``⊕`` puts a newline between prompt and response (``wrapper="sft"``) or nothing
(``wrapper="pretrain"``). The sequence that is scored for one candidate is (paper, section 3 and figure 2)::

    [bos] enc(prompt ⊕ reference) <|reward|> enc(prompt ⊕ candidate) [UNUSED_TOKEN_130]

The token *named* ``<|reward|>`` is the separator, and the score is read at ``[UNUSED_TOKEN_130]``. Prompt and response are
tokenised together, so a merge may cross their boundary. The shared prefix is therefore a common prefix of the candidates' ids.
In training it is the longest common prefix, which costs the least. In scoring it ends where the ids of the prompt alone end, even
if candidates have equal beginnings: attention rounds differently after another prefix, and a score must not depend on the other
candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any, Self

from tokenizers import Encoding, Tokenizer

from polar_rm.common.sources import model_folder
from polar_rm.encoding.edges import Edge, EdgeRequest, Side, edges
from polar_rm.encoding.fingerprint import VERSION, digest, fingerprint, fingerprint_1
from polar_rm.encoding.settings import RESERVED_TOKENS, EncoderSettings, saved_encoder
from polar_rm.encoding.specials import SpecialTokens
from polar_rm.encoding.texts import RenderedTexts, Template, batches_of_texts, clean_up, is_unfinished, strip_thinking
from polar_rm.encoding.tokenizers import leading_ids, load_tokenizer, special_aliases
from polar_rm.encoding.tree import PrefixTree, Truncation
from polar_rm.errors import EncoderMismatch, PolarError
from polar_rm.records import Comparison, Text, one_reference

# The joint ids may be more or fewer than those of the parts, because of a merge at the boundary. A sequence that is shorter than
# the limits by this margin is never truncated.
_MERGE_SLACK = 32
# A text with more characters per allowed token than this is hardly ever within the limit, so it is tokenised for truncation at
# once. A wrong guess costs time and changes no id.
_CHARACTERS_PER_TOKEN = 6
# A response without glue can merge with the prompt's last word, which is searched in this many characters.
_LAST_WORD = 16


@dataclass(frozen=True, slots=True)
class _Joint:
    """Joint ids of candidates that share one truncation of the prompt.

    indices: the candidates. ids: of the reference and then of each candidate, each joined with the prompt. prompt: the kept part
    of the prompt, without special tokens.
    """

    indices: list[int]
    ids: list[list[int]]
    truncation: Truncation
    prompt: str


class Encoder:
    """Converts a comparison to a :class:`PrefixTree`; the ids are the same in all stages.

    Literal special tokens in user text are dropped, as in the official client. Here they are dropped to a fixed point: the text
    that remains after a removal never contains a special token again, so no text can insert a separator or a second reward token.
    """

    def __init__(self, tokenizer: Tokenizer, settings: EncoderSettings | None = None) -> None:
        self.settings = settings or EncoderSettings()
        self.source = tokenizer  # unchanged; checkpoints save this one
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        if getattr(self.tokenizer.model, "dropout", None):
            raise PolarError("the tokenizer's model has dropout, which gives a text different ids each time; set it to null")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.bos_ids = leading_ids(self.tokenizer)
        # Without a post-processor the tokenizer adds no tokens, and byte-level tokenizers do not trim spaces off the offsets.
        self.tokenizer.post_processor = None
        self.separator_id = self._role_id(self.settings.separator_token)
        self.reward_id = self._role_id(self.settings.reward_token)
        special = {added.content for added in self.tokenizer.get_added_tokens_decoder().values() if added.special}
        special |= {self.settings.separator_token, self.settings.reward_token}
        self._specials = SpecialTokens(special | special_aliases(self.tokenizer, special))
        self._template = Template(self.settings.template, self.settings.version)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """The encoder of a checkpoint: its tokenizer with the settings saved in ``config.json``.

        Raises:
            EncoderMismatch: the saved hash differs from the hash of the folder's files (the tokenizer or the settings changed).
        """
        directory = model_folder(directory, weights=False)
        settings, version, saved_fingerprint, saved_hash = saved_encoder(directory)
        encoder = cls(load_tokenizer(directory), settings)
        actual_fingerprint = encoder.fingerprint if version == VERSION else encoder._fingerprint_1()
        actual_hash = digest([settings.to_dict(), actual_fingerprint])
        if actual_hash != saved_hash:
            part = "tokenizer" if actual_fingerprint != saved_fingerprint else "settings"
            raise EncoderMismatch(
                f"{directory}: the encoder's {part} changed since the checkpoint was saved (saved hash {saved_hash}, "
                f"these files give {actual_hash}): scores would be about other tokens"
            )
        return encoder

    def to_config(self) -> dict[str, Any]:
        """The section ``polar.encoder`` of ``config.json``, which :meth:`from_pretrained` reads."""
        return {
            "settings": self.settings.to_dict(),
            "fingerprint_version": VERSION,
            "tokenizer": self.fingerprint,
            "hash": self.hash,
        }

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the tokenizer's behaviour, not of its file: libraries rewrite ``tokenizer.json`` without changing
        any id."""
        return fingerprint(self.tokenizer, self._specials.texts, self.bos_ids, self._ids)

    @cached_property
    def hash(self) -> str:
        """The identity of the function from text to ids; equal hashes mean equal ids for every text."""
        return digest([self.settings.to_dict(), self.fingerprint])

    def _fingerprint_1(self) -> str:
        return fingerprint_1(self.tokenizer, self.bos_ids, self._ids)

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def longest_token(self) -> int:
        """The number of characters of the longest token; a text of more than n times as many has more than n tokens."""
        return max(map(len, self.tokenizer.get_vocab(with_added_tokens=True)))

    def ids(self, text: str) -> list[int]:
        """The ids of an unchanged text: special tokens in it become their ids, and no BOS is added.

        Raises:
            PolarError: the text is not valid Unicode.
        """
        return self._ids([text])[0]

    def ids_of_rendered(self, text: str, *, add_bos: bool = True) -> list[int]:
        """The ids of an item that another program has rendered (see the head of this file), as an engine computes them.

        Both role tokens are atomic, and the BOS is in front exactly once. With ``clean_up`` the text is cleaned like the texts of
        this encoder's own items: the other program may use a tokenizer that, unlike the official one, decodes without clean-up.

        Raises:
            PolarError: the text is not valid Unicode, or certainly longer than ``max_length``. Such a text is not read whole.
        """
        limit = self.settings.max_length
        # The clean-up removes less than half of a text.
        start = text[: 2 * _CHARACTERS_PER_TOKEN * limit]
        if len(text) > 2 * limit * self.longest_token or (
            len(start) < len(text) and len(self.ids(self._clean(start))) > limit + self.longest_token
        ):
            raise PolarError(f"{len(text):,} characters are more than max_length {limit} tokens; truncate it before sending")
        ids = self.ids(self._clean(text))
        has_bos = not add_bos or ids[: len(self.bos_ids)] == self.bos_ids
        return ids if has_bos else [*self.bos_ids, *ids]

    def encode(self, comparison: Comparison) -> PrefixTree:
        """Encode one comparison. All candidates share one truncation of the prompt, which the longest candidate determines."""
        return self.encode_many([comparison])[0]

    def encode_many(self, comparisons: Sequence[Comparison]) -> list[PrefixTree]:
        """Encode comparisons as :meth:`encode` does, tokenised as one batch on all cores."""
        trees: list[PrefixTree] = []
        given = [None if c.reference is None else one_reference(c) for c in comparisons]
        fields = [self._fields(c.prompt, r, c.candidates, c.wrapper) for c, r in zip(comparisons, given, strict=True)]
        for comparison, field, untruncated in zip(comparisons, fields, self._encode_untruncated(fields), strict=True):
            [joint] = [untruncated] if untruncated else self._encode_truncated(field, shared=True)
            trees.append(self._tree(joint, field, comparison.ranks))
        return trees

    def encode_outputs(
        self, prompt: Text, reference: Text | None, outputs: Sequence[Text], wrapper: str = "sft"
    ) -> list[tuple[list[int], PrefixTree]]:
        """Trees for scoring, each with the indices of its outputs.

        The ids of an output and the start of its branch do not depend on the other outputs. If the prompt must be truncated, each
        output gets the truncation that it would get alone (as in the official client), and only outputs with the same truncation
        share a tree.
        """
        field = self._fields(prompt, reference, outputs, wrapper)
        [untruncated] = self._encode_untruncated([field])
        trees = []
        for joint in [untruncated] if untruncated else self._encode_truncated(field, shared=False):
            prompt_ids = self.ids(self._stable_prompt(field, joint.prompt))
            shared = [len(commonprefix([prompt_ids, ids])) for ids in joint.ids[1:]]
            for length, part in _by_value(joint.indices, shared).items():  # hardly ever more than one
                trees.append((part, self._tree(joint, field, (0,) * len(outputs), part, length)))
        return trees

    def with_identical(self, tree: PrefixTree) -> PrefixTree:
        """The same comparison with its reference in place of its best candidate (of the first one if several are best).

        The ids equal those of encoding such a comparison with this tree's truncation of the prompt. The tree is returned
        unchanged if ``max_length`` can't hold the reference twice.
        """
        end = tree.prefix.index(self.separator_id, len(self.bos_ids)) + 1
        head, shared = tree.prefix[:end], tree.prefix[end:]
        reference = head[len(self.bos_ids) : -1]
        if len(head) + len(reference) + 1 > self.settings.max_length:
            return tree
        tails = [[*shared, *branch] for branch in tree.branches]
        tails[tree.ranks.index(min(tree.ranks))] = [*reference, self.reward_id]
        return PrefixTree.of(head, tails, tree.ranks, tree.truncation, tree.notes)

    def _role_id(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise PolarError(f"the tokenizer has no token {token!r}; build a reward model first, because that adds it")
        if self.tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
            raise PolarError(f"the tokenizer splits {token!r} into pieces; it must be one special token")
        return int(token_id)

    def _fields(self, prompt: Text, reference: Text | None, candidates: Sequence[Text], wrapper: str) -> RenderedTexts:
        if reference is None:
            raise PolarError("the comparison has no reference; give one, or an empty string to score without a reference")
        chat = self._template.keeps_roles and wrapper == "sft"
        template = self._template if chat or wrapper == "sft" else Template("polar", 1)
        notes = [("unfinished_thinking",) if is_unfinished(candidate) else () for candidate in candidates]
        if self.settings.thinking == "strip":
            originals = [reference, *candidates]
            reference, *candidates = map(strip_thinking, originals)
            is_stripped = [old != new for old, new in zip(originals, (reference, *candidates), strict=True)]
            notes = [
                ("thinking_stripped", *note) if is_stripped[0] or candidate_is_stripped else note
                for note, candidate_is_stripped in zip(notes, is_stripped[1:], strict=True)
            ]
        rendered = [template.response(candidate) for candidate in candidates]
        return RenderedTexts(
            template.prompt(prompt),
            template.response(reference),
            rendered,
            "\nassistant: " if chat else "\n" if wrapper == "sft" else "",
            tuple((*note, "empty") if text.isspace() or not text else note for note, text in zip(notes, rendered, strict=True)),
        )

    def _clean(self, text: str) -> str:
        return clean_up(text) if self.settings.clean_up else text

    def _joint(self, field: RenderedTexts, prompt: str, reference: str, candidates: Sequence[str]) -> list[str]:
        """``prompt ⊕ response`` for the reference and each candidate. An empty response gets no newline (as in training).

        The arguments contain no special tokens.
        """
        prompt = self._clean(prompt)
        responses = [self._clean(response) for response in (reference, *candidates)]
        # Drop again, because prompt and response can form a special token across their boundary.
        return [self._specials.drop(prompt + field.glue + response if response else prompt) for response in responses]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenise(texts, self.tokenizer.encode_batch_fast)]

    def _encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """Encodings with offsets."""
        return list(self._tokenise(texts, self.tokenizer.encode_batch))

    def _tokenise(self, texts: Sequence[str], encode: Callable[..., list[Encoding]]) -> Iterator[Encoding]:
        """Tokenise texts. All texts are tokenised here, so that one place reports invalid texts."""
        try:
            for batch in batches_of_texts(texts):
                yield from encode(batch, add_special_tokens=False)
        except (TypeError, UnicodeError) as error:
            raise _not_unicode(error) from error

    def _stable_prompt(self, field: RenderedTexts, prompt: str) -> str:
        """The part of a prompt whose ids a response never changes, or hardly ever."""
        prompt = self._clean(prompt)
        return self._specials.drop(prompt if field.glue else prompt[:-_LAST_WORD] + prompt[-_LAST_WORD:].rpartition(" ")[0])

    def _encode_untruncated(self, fields: Sequence[RenderedTexts]) -> list[_Joint | None]:
        """The joint ids of each comparison, tokenised as one batch; None where a text may need truncation."""
        max_response, max_prompt = (
            _CHARACTERS_PER_TOKEN * n_tokens for n_tokens in (self.settings.max_response_length, self.settings.max_length)
        )
        drop = self._specials.drop
        prompts = {
            number: drop(field.prompt)
            for number, field in enumerate(fields)
            if max(map(len, (field.reference, *field.candidates))) <= max_response and len(field.prompt) <= max_prompt
        }
        texts = {
            number: self._joint(fields[number], text, drop(fields[number].reference), list(map(drop, fields[number].candidates)))
            for number, text in prompts.items()
        }
        all_ids = iter(self._ids([text for joint_texts in texts.values() for text in joint_texts]))
        joints: list[_Joint | None] = [None] * len(fields)
        for number, joint_texts in texts.items():
            ids = [next(all_ids) for _ in joint_texts]
            if self._surely_fits(*ids):
                n_candidates = len(joint_texts) - 1
                truncation = Truncation(candidates=(0,) * n_candidates)
                joints[number] = _Joint(list(range(n_candidates)), ids, truncation, prompts[number])
        return joints

    def _surely_fits(self, reference_ids: list[int], *candidate_ids: list[int]) -> bool:
        longest = max(map(len, candidate_ids))
        response_limit = self.settings.max_response_length - _MERGE_SLACK
        length_limit = self.settings.max_length - RESERVED_TOKENS - _MERGE_SLACK
        return max(len(reference_ids), longest) <= response_limit and len(reference_ids) + longest <= length_limit

    def _encode_truncated(self, field: RenderedTexts, *, shared: bool) -> Iterator[_Joint]:
        """The general case: truncate each response to its limit, then the prompt to the tokens that the responses leave.

        shared: all candidates share one truncation of the prompt.
        """
        prompt, *responses = self._edges(field)
        (reference, n_reference, reference_truncation), *candidates = map(self._truncate_response, responses)
        limit = self.settings.max_length
        budgets = [(limit - RESERVED_TOKENS - n_reference - n_candidate) // 2 for _, n_candidate, _ in candidates]
        lengths = [max(0, min(len(prompt.offsets), min(budgets) if shared else budget)) for budget in budgets]
        pending = _by_value(range(len(candidates)), lengths)
        while pending:
            kept, indices = pending.popitem()
            text = prompt.last(kept)
            ids = self._ids(self._joint(field, text, reference, [candidates[i][0] for i in indices]))
            # Truncation can undo merges, so the joint ids may be more than those of the parts; the prompt occurs twice.
            excess = [len(self.bos_ids) + len(ids[0]) + len(candidate_ids) + 2 - limit for candidate_ids in ids[1:]]
            if shared:
                excess = [max(excess)] * len(indices)
            if kept == 0 and max(excess) > 0:
                raise PolarError(f"a sequence is {max(excess)} tokens over max_length {limit} without its prompt")
            fitting = [n for n, tokens in enumerate(excess) if tokens <= 0]
            if fitting:
                truncations = tuple(candidates[indices[n]][2] for n in fitting)
                truncation = Truncation(len(prompt) - kept, reference_truncation, truncations)
                yield _Joint([indices[n] for n in fitting], [ids[0], *(ids[n + 1] for n in fitting)], truncation, text)
            too_long = [n for n, tokens in enumerate(excess) if tokens > 0]
            shorter = [max(0, kept - (excess[n] + 1) // 2) for n in too_long]
            for length, group in _by_value([indices[n] for n in too_long], shorter).items():
                pending.setdefault(length, []).extend(group)

    def _edges(self, field: RenderedTexts) -> list[Edge]:
        """The last tokens of the prompt and the first (or last) tokens of each response, more than can be kept of each."""
        settings = self.settings
        response_side: Side = "first" if settings.response_cut_side == "right" else "last"
        responses = (field.reference, *field.candidates)
        requests = [EdgeRequest(field.prompt, settings.max_length // 2, "last")]
        requests += [EdgeRequest(text, settings.max_response_length, response_side) for text in responses]
        for request in requests:  # some are not read whole, and a lone surrogate may be in the rest
            try:
                request.text.encode()
            except UnicodeError as error:
                raise _not_unicode(error) from error
        return edges(requests, self._encodings, self._specials.drop, self._specials.characters)

    def _truncate_response(self, edge: Edge) -> tuple[str, int, int]:
        """The text within ``max_response_length`` tokens, its number of tokens and the number of tokens that were removed.

        The official client counts a BOS in every field; truncation from the left removes that BOS first.
        """
        n_tokens, n_bos, limit = len(edge), len(self.bos_ids), self.settings.max_response_length
        if not edge.omitted and n_tokens + n_bos <= limit:
            return edge.text, n_tokens + n_bos, 0
        if self.settings.response_cut_side == "right":
            kept = min(len(edge.offsets), limit - n_bos)
            return edge.first(kept), kept + n_bos, n_tokens - kept
        kept = min(len(edge.offsets), limit)
        return edge.last(kept), kept if edge.omitted else limit, n_tokens - kept

    def _tree(
        self,
        joint: _Joint,
        field: RenderedTexts,
        ranks: tuple[int, ...],
        part: Sequence[int] | None = None,
        shared: int | None = None,
    ) -> PrefixTree:
        """The tree of a comparison's ids. part: only these candidates. shared: see :meth:`PrefixTree.of`."""
        indices = joint.indices if part is None else part
        rows = [joint.indices.index(i) for i in indices]
        head = [*self.bos_ids, *joint.ids[0], self.separator_id]
        tails = [[*joint.ids[row + 1], self.reward_id] for row in rows]
        whole = joint.truncation
        truncation = Truncation(whole.prompt, whole.reference, tuple(whole.candidates[row] for row in rows))
        notes = tuple(field.notes[i] for i in indices)
        return PrefixTree.of(head, tails, tuple(ranks[i] for i in indices), truncation, notes, shared=shared)


def _by_value(indices: Sequence[int], values: Sequence[int]) -> dict[int, list[int]]:
    """The indices grouped by their value, in the order in which values first occur."""
    groups: dict[int, list[int]] = {}
    for index, value in zip(indices, values, strict=True):
        groups.setdefault(value, []).append(index)
    return groups


def _not_unicode(error: Exception) -> PolarError:
    return PolarError(f"a text is not valid Unicode (a lone surrogate?): {error}")
