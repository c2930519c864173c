"""A SentencePiece model as a fast tokenizer with the same ids, built from the file's own pieces.

The official POLAR tokenizer is right only in its slow form: the fast one that its remote code builds splits the scoring token
``[UNUSED_TOKEN_130]`` into seven pieces, and transformers 5 loses spaces when it is asked to run that code. What makes the slow
form different is what is repeated here: pieces marked as user-defined are never split and never merged with their neighbours.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from polar_rm.errors import PolarError, UnsupportedModel

_SPACE = "▁"  # SentencePiece writes spaces so

# SentencePiece.Type, ModelType and field numbers are those of sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BPE = 2


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """pieces: (text, score, type) in the order of their ids. trainer, normalizer: values by field number of the two specs."""

    pieces: list[tuple[str, float, int]]
    trainer: dict[int, Any]
    normalizer: dict[int, Any]

    def check(self, path: Path) -> None:
        """Raises UnsupportedModel unless a fast tokenizer can give exactly the ids that SentencePiece gives."""
        texts = {text for text, _, kind in self.pieces if kind == _NORMAL}
        lone = (
            {character for text in texts for character in text}
            - texts
            - {t for t, _, kind in self.pieces if kind == _USER_DEFINED}
        )
        reasons = [
            (self.trainer.get(3, 1) != _BPE, "it is no BPE model"),
            (not self.trainer.get(35, 0), "it has no byte fallback"),
            (self.trainer.get(24, 0), "it treats white space as a suffix"),
            (self.normalizer.get(2, b""), f"it normalises characters ({self.normalizer.get(1, b'').decode()!r})"),
            (self.normalizer.get(3, 1), "it puts a space before every text"),
            (self.normalizer.get(4, 1), "it removes repeated spaces"),
            (not self.normalizer.get(5, 1), "it does not escape spaces"),
            (any(kind == _UNUSED for _, _, kind in self.pieces), "it has unused pieces"),
            (lone, f"its pieces hold characters that are no pieces, such as {min(lone, default='')!r}"),
        ]
        found = [reason for wrong, reason in reasons if wrong]
        if found:
            raise UnsupportedModel(f"{path}: a fast tokenizer can't repeat this SentencePiece model exactly: {found[0]}")


def fast_tokenizer(path: Path, added: Mapping[int, AddedToken], reward_id: int, bos: str | None) -> tuple[Tokenizer, str]:
    """The tokenizer of ``tokenizer.model``, and the text of its scoring token.

    added: tokens that take the place of the pieces with these ids and are atomic (``added_tokens_decoder``). reward_id: of the
    scoring token, made special too. bos: text of the token before every text.

    A text that spells a replaced piece (``[UNUSED_TOKEN_0]`` where ``<|reward|>`` stands) becomes the same id, as in the slow
    tokenizer, which never forgets its pieces.

    Raises:
        UnsupportedModel: a fast tokenizer could give other ids.
    """
    model = read_sentencepieces(path)
    model.check(path)
    pieces = model.pieces
    beyond = [index for index in (*added, reward_id) if not 0 <= index < len(pieces)]
    if beyond:
        raise UnsupportedModel(f"{path}: vocabulary mismatch: there are {len(pieces)} pieces, but a token has the id {beyond[0]}")
    texts = [added[index].content if index in added else text for index, (text, _, _) in enumerate(pieces)]
    ids = {text: index for index, text in enumerate(texts)}
    if len(ids) != len(texts):
        twice = next(text for index, text in enumerate(texts) if ids[text] != index)
        raise UnsupportedModel(f"{path}: {twice!r} would stand for two ids")
    if bos is not None and bos not in ids:
        raise UnsupportedModel(f"{path}: the BOS {bos!r} is no piece")
    unknown = next(text for text, (_, _, kind) in zip(texts, pieces, strict=True) if kind == _UNKNOWN)
    tokenizer = Tokenizer(models.BPE(ids, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    aliases = [(pieces[index][0], token.content) for index, token in added.items() if pieces[index][2] == _USER_DEFINED]
    tokenizer.normalizer = normalizers.Sequence(
        [*(normalizers.Replace(piece, text) for piece, text in aliases if piece != text), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    own = {index: AddedToken(text) for index, (text, _, kind) in enumerate(pieces) if kind == _USER_DEFINED or index == reward_id}
    atomic = [_atomic(token, token.special or index == reward_id) for index, token in (own | dict(added)).items()]
    tokenizer.add_special_tokens([token for token in atomic if token.special])
    tokenizer.add_tokens([token for token in atomic if not token.special])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return tokenizer, texts[reward_id]


def _atomic(token: AddedToken, special: bool) -> AddedToken:
    """Looked for after normalisation, so that aliases are found too."""
    sides = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
    return AddedToken(token.content, special=special, normalized=True, **sides)


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Pairs in the order in which SentencePiece joins them: by the score of what they become."""
    scores = {text: score for text, score, kind in pieces if kind == _NORMAL}
    pairs = [
        (score, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    pairs.sort(key=lambda pair: (-pair[0], -len(pair[1]), -len(pair[2])))
    return [(left, right) for _, left, right in pairs]


def read_sentencepieces(path: Path) -> SentencePieces:
    """The file is one protocol buffer: 1 = pieces {1 text, 2 score, 3 type}, 2 = trainer_spec, 3 = normalizer_spec.

    Raises:
        PolarError: there is no such file, or it is no SentencePiece model.
    """
    try:
        data = path.read_bytes()
        pieces, trainer, normalizer = [], {}, {}
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), piece.get(2, 0.0), piece.get(3, _NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except OSError as error:
        raise PolarError(f"{path}: {error.strerror}") from error
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise PolarError(f"{path}: not a SentencePiece model") from error
    if not pieces:
        raise PolarError(f"{path}: not a SentencePiece model")
    return SentencePieces(pieces, trainer, normalizer)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one protocol buffer message: integers, floats, or bytes of strings and messages."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
        elif wire in (1, 5):
            size, kind = (8, "<d") if wire == 1 else (4, "<f")
            yield number, struct.unpack_from(kind, data, place)[0]
            place += size
        elif wire == 2:
            size = varint()
            if place + size > len(data):
                raise ValueError("cut short")
            yield number, data[place : place + size]
            place += size
        else:
            raise ValueError(f"wire type {wire}")
