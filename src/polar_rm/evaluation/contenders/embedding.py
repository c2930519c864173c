"""Semantic similarity to the reference: the cosine of a sentence encoder's embeddings, a baseline of the paper."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from polar_rm.common.files import read_json
from polar_rm.common.iteration import windows
from polar_rm.common.sources import model_folder
from polar_rm.common.text import first_line
from polar_rm.encoding.tokenizers import whole_tokenizer
from polar_rm.errors import PolarError, ScoreError, UnsupportedModel
from polar_rm.evaluation.contenders.base import Contender, ModelOptions
from polar_rm.evaluation.contenders.native import free_memory
from polar_rm.evaluation.pairs import NotedScores
from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.model.backbones import dtype_of
from polar_rm.model.bars import without_bars
from polar_rm.model.folders import check_config_file
from polar_rm.model.weights import check_weights
from polar_rm.records import Comparison, flatten, one_reference
from polar_rm.rewards.outcomes import Cut

_WINDOW = 128  # the number of comparisons whose texts are sorted by length together

# Modules of sentence-transformers that do not change the cosine, or that this file implements.
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS = ("mean", "cls", "max", "lasttoken")
# Tokenizers without a limit have a huge number instead.
_NO_LIMIT = 1 << 20


class Embedding(Contender):
    """``embedding:FOLDER``, or ``embedding:package:NAME`` of an installed package with the weights.

    The folder is one of sentence-transformers, or of any encoder of transformers, which is pooled by the mean. Texts are
    truncated to the encoder's limit and then have a note. The reference and each candidate are embedded without the prompt.
    """

    kind = "baseline"
    has_weights = True
    has_scale = False

    def __init__(self, name: str, source: str | Path, options: ModelOptions) -> None:
        super().__init__(name)
        self.source = str(source)
        self._options = options

    def check(self) -> None:
        """Check config, tokenizer and pooling; the weights are not read.

        Raises:
            PolarError: there is no such encoder, or this file can't compute its embeddings exactly.
        """
        folder = encoder_folder(self.source or "")
        check_config_file(folder)
        whole_tokenizer(folder)
        self.facts |= {"pooling": pooling_of(folder), **self._options.placement()}

    def load(self) -> ComparisonScorer:
        """The encoder with its weights."""
        return EmbeddingScorer(self.name, encoder_folder(self.source or ""), self._options)

    def release(self) -> None:
        """Free the encoder's memory."""
        free_memory()


def encoder_folder(source: str) -> Path:
    """The folder itself, or the one folder with a ``config.json`` in a package.

    Raises:
        PolarError: there is no such folder, or more than one.
    """
    folder = model_folder(source)
    if (folder / "config.json").is_file():
        return folder
    encoders = sorted({path.parent for path in folder.rglob("config.json") if (path.parent / "tokenizer.json").is_file()})
    if len(encoders) != 1:
        raise PolarError(f"{folder}: {len(encoders)} folders in it hold config.json and tokenizer.json; one is needed")
    return encoders[0]


def pooling_of(folder: Path) -> str:
    """The pooling of the encoder's tokens: mean, cls, max or lasttoken.

    Raises:
        UnsupportedModel: a module or the pooling is not supported.
    """
    modules = folder / "modules.json"
    if modules.is_file():
        try:
            kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in json.loads(modules.read_text(encoding="utf-8"))]
        except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
            raise PolarError(f"{modules}: expected a list of modules with types") from error
        if unknown := [kind for kind in kinds if kind not in _MODULES]:
            raise UnsupportedModel(f"{folder}: its module {unknown[0]} is not known here; known: {', '.join(_MODULES)}")
    settings = folder / "1_Pooling" / "config.json"
    if not settings.is_file():
        return "mean"
    values = read_json(settings)
    mode = values.get("pooling_mode")
    modes = [mode] if mode else [name for name in values if name.startswith("pooling_mode_") and values[name] is True]
    poolings = [str(name).removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for name in modes]
    if len(poolings) != 1 or poolings[0] not in _POOLINGS:
        raise UnsupportedModel(f"{settings}: it pools by {' and '.join(poolings) or 'nothing'}; known: {', '.join(_POOLINGS)}")
    return poolings[0]


class EmbeddingScorer:
    """Cosine of reference and candidate, 0 if one of them is empty."""

    def __init__(self, name: str, folder: Path, options: ModelOptions) -> None:
        from transformers import AutoModel

        self._name, self._options = name, options
        self._tokenizer = whole_tokenizer(folder)
        self._pooling = pooling_of(folder)
        placement = options.placement()
        check_weights(folder)
        try:
            with without_bars():
                self._model: Any = AutoModel.from_pretrained(folder, dtype=dtype_of(placement["dtype"]), trust_remote_code=False)
        except Exception as error:  # transformers may raise any exception for an invalid value
            raise UnsupportedModel(f"{folder}: {first_line(error)}") from error
        self._model = self._model.to(placement["device"]).eval()
        limits = [getattr(self._model.config, "max_position_embeddings", None)]
        for file, key in (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length")):
            if (folder / file).is_file():
                limits.append(read_json(folder / file).get(key))
        if lengths := [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]:
            self._tokenizer.enable_truncation(min(lengths))

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """One cosine for each candidate, -1 to 1.

        Raises:
            ScoreError: a text can't be embedded.
        """
        for window in windows(comparisons, _WINDOW):
            texts = [[flatten(text) for text in (one_reference(item), *item.candidates)] for item in window]
            rows = {text: row for row, text in enumerate(dict.fromkeys(text for group in texts for text in group))}
            vectors, lengths = self._embed(list(rows))
            for reference, *candidates in texts:
                reference_row = rows[reference]
                cosines = vectors[[rows[text] for text in candidates]] @ vectors[reference_row]
                read, unread = lengths[reference_row]
                texts_read = [lengths[rows[text]] for text in candidates]
                tokens = [(read + n_tokens, Cut(reference=unread, output=cut)) for n_tokens, cut in texts_read]
                notes = [("truncated",) if cut else () for _, cut in tokens]
                yield NotedScores(
                    [
                        float(cosine) if reference and text else 0.0
                        for text, cosine in zip(candidates, cosines.tolist(), strict=True)
                    ],
                    notes,
                    tokens,
                )

    def _embed(self, texts: Sequence[str]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Unit vectors, float32 [n, width], and how many tokens of each text were read and removed."""
        encodings = self._tokenizer.encode_batch(list(texts))
        ids = [encoding.ids for encoding in encodings]
        order = sorted(range(len(texts)), key=lambda i: -len(ids[i]))
        vectors: dict[int, torch.Tensor] = {}
        start = 0
        while start < len(order):
            size = max(1, self._options.row_tokens // max(1, len(ids[order[start]])))
            batch = order[start : start + size]
            for index, vector in zip(batch, self._forward([ids[index] for index in batch]), strict=True):
                vectors[index] = vector
            start += size
        stacked = torch.stack([vectors[index] for index in range(len(texts))])
        removed = [sum(part.special_tokens_mask.count(0) for part in encoding.overflowing) for encoding in encodings]
        lengths = list(zip(map(len, ids), removed, strict=True))
        return torch.nn.functional.normalize(stacked, dim=1), lengths

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        width = max(1, *map(len, sequences))
        ids = torch.zeros((len(sequences), width), dtype=torch.long)  # the padding is masked, so its token is arbitrary
        mask = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
            mask[row, : len(sequence)] = 1
        device = self._model.device
        try:
            output = self._model(input_ids=ids.to(device), attention_mask=mask.to(device))
            states: torch.Tensor = output.last_hidden_state.float().cpu()
        except (IndexError, RuntimeError, AttributeError) as error:
            raise ScoreError(f"{self._name}: texts of up to {width:,} tokens can't be embedded: {first_line(error)}") from error
        weights = mask[:, :, None].float()
        match self._pooling:
            case "cls":
                return states[:, 0]
            case "max":
                return states.masked_fill(weights == 0, -torch.inf).amax(1)
            case "lasttoken":
                return states[torch.arange(len(sequences)), mask.sum(1) - 1]
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
