"""A SentencePiece model as a fast tokenizer with the same ids, built from the pieces in the file.

The official POLAR tokenizer gives the right ids only in its slow form. The fast one that its remote code builds splits the
scoring token ``[UNUSED_TOKEN_130]`` into seven pieces, and transformers 5 loses spaces when it runs that code. The slow form
never splits pieces that are marked as user-defined, and never merges them with their neighbours; the tokenizer built here does
the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from polar_rm.errors import PolarError, UnsupportedModel

_SPACE = "▁"  # SentencePiece's character for a space

# SentencePiece.Type, ModelType and field numbers are those of sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BPE = 2


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """The content of a SentencePiece model.

    pieces: (text, score, type) in the order of their ids. trainer, normalizer: field number -> value of the two specs.
    """

    pieces: list[tuple[str, float, int]]
    trainer: dict[int, Any]
    normalizer: dict[int, Any]

    def check(self, path: Path) -> None:
        """Check that a fast tokenizer can give exactly the ids that SentencePiece gives.

        Raises:
            UnsupportedModel: names the first property that it can't reproduce.
        """
        texts = {text for text, _, kind in self.pieces if kind == _NORMAL}
        lone = (
            {character for text in texts for character in text}
            - texts
            - {t for t, _, kind in self.pieces if kind == _USER_DEFINED}
        )
        reasons = [
            (self.trainer.get(3, 1) != _BPE, "it is not a BPE model"),
            (not self.trainer.get(35, 0), "it has no byte fallback"),
            (self.trainer.get(24, 0), "it treats white space as a suffix"),
            (self.normalizer.get(2, b""), f"it normalises characters ({self.normalizer.get(1, b'').decode()!r})"),
            (self.normalizer.get(3, 1), "it puts a space before every text"),
            (self.normalizer.get(4, 1), "it removes repeated spaces"),
            (not self.normalizer.get(5, 1), "it does not escape spaces"),
            (any(kind == _UNUSED for _, _, kind in self.pieces), "it has unused pieces"),
            (lone, f"its pieces have characters that are not pieces, such as {min(lone, default='')!r}"),
        ]
        for is_wrong, reason in reasons:
            if is_wrong:
                raise UnsupportedModel(f"{path}: a fast tokenizer can't reproduce this SentencePiece model exactly: {reason}")


def fast_tokenizer(path: Path, added: Mapping[int, AddedToken], reward_id: int, bos: str | None) -> tuple[Tokenizer, str]:
    """The tokenizer of a ``tokenizer.model``, and the text of its scoring token.

    added: atomic tokens that replace the pieces with these ids (``added_tokens_decoder``). reward_id: the id of the scoring
    token, which becomes special too. bos: the text of the token before every text.

    A text that spells a replaced piece (such as ``[UNUSED_TOKEN_0]``, which ``<|reward|>`` replaces) gets the same id, as in
    the slow tokenizer, which keeps its pieces.

    Raises:
        UnsupportedModel: a fast tokenizer could give other ids.
    """
    model = read_sentencepieces(path)
    model.check(path)
    pieces = model.pieces
    unknown_ids = [index for index in (*added, reward_id) if not 0 <= index < len(pieces)]
    if unknown_ids:
        raise UnsupportedModel(
            f"{path}: vocabulary mismatch: there are {len(pieces)} pieces, but a token has the id {unknown_ids[0]}"
        )
    texts = [added[index].content if index in added else text for index, (text, _, _) in enumerate(pieces)]
    ids = {text: index for index, text in enumerate(texts)}
    if len(ids) != len(texts):
        duplicate = next(text for index, text in enumerate(texts) if ids[text] != index)
        raise UnsupportedModel(f"{path}: {duplicate!r} would have two ids")
    if bos is not None and bos not in ids:
        raise UnsupportedModel(f"{path}: the BOS {bos!r} is not a piece")
    unknown = next(text for text, (_, _, kind) in zip(texts, pieces, strict=True) if kind == _UNKNOWN)
    tokenizer = Tokenizer(models.BPE(ids, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    aliases = [(pieces[index][0], token.content) for index, token in added.items() if pieces[index][2] == _USER_DEFINED]
    tokenizer.normalizer = normalizers.Sequence(
        [*(normalizers.Replace(piece, text) for piece, text in aliases if piece != text), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    from_pieces = {
        index: AddedToken(text) for index, (text, _, kind) in enumerate(pieces) if kind == _USER_DEFINED or index == reward_id
    }
    atomic = [_atomic(token, token.special or index == reward_id) for index, token in (from_pieces | dict(added)).items()]
    tokenizer.add_special_tokens([token for token in atomic if token.special])
    tokenizer.add_tokens([token for token in atomic if not token.special])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return tokenizer, texts[reward_id]


def _atomic(token: AddedToken, special: bool) -> AddedToken:
    """A token that is matched after normalisation, so that the normalised forms of its aliases match too."""
    sides = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
    return AddedToken(token.content, special=special, normalized=True, **sides)


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Pairs in the order in which SentencePiece merges them: by the score of the merged piece."""
    scores = {text: score for text, score, kind in pieces if kind == _NORMAL}
    pairs = [
        (score, text[:split], text[split:])
        for text, score in scores.items()
        for split in range(1, len(text))
        if text[:split] in scores and text[split:] in scores
    ]
    pairs.sort(key=lambda pair: (-pair[0], -len(pair[1]), -len(pair[2])))
    return [(left, right) for _, left, right in pairs]


def read_sentencepieces(path: Path) -> SentencePieces:
    """Read a SentencePiece model.

    The file is one protocol buffer: 1 = pieces {1 text, 2 score, 3 type}, 2 = trainer_spec, 3 = normalizer_spec.

    Raises:
        PolarError: there is no such file, or it is not a SentencePiece model.
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
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
        elif wire in (1, 5):
            size, kind = (8, "<d") if wire == 1 else (4, "<f")
            yield number, struct.unpack_from(kind, data, position)[0]
            position += size
        elif wire == 2:
            size = varint()
            if position + size > len(data):
                raise ValueError("truncated")
            yield number, data[position : position + size]
            position += size
        else:
            raise ValueError(f"wire type {wire}")
