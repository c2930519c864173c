"""Ordinary reward models: one-label classifiers of transformers with their own chat templates, without references."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from polar_rm.common.files import read_json
from polar_rm.common.iteration import windows
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
from polar_rm.model.language_models import load_auto_tokenizer
from polar_rm.model.weights import check_weights
from polar_rm.records import Comparison, Message, Text

_WINDOW = 128  # the number of comparisons whose sequences are sorted by length together


class Stock(Contender):
    """``hf:FOLDER``: a folder of a one-label ``*ForSequenceClassification``. Code in the folder is never run."""

    kind = "stock"
    reads_references = False
    has_weights = True

    def __init__(self, name: str, folder: str | Path, options: ModelOptions) -> None:
        super().__init__(name)
        self.source = str(folder)
        self._folder, self._options = Path(folder), options
        self._template: ChatTemplate | None = None

    def check(self) -> None:
        """Check config, tokenizer and chat template; the weights are not read.

        Raises:
            PolarError: the folder holds no such model, or it has no chat template.
        """
        self.facts |= self._options.placement()
        check_classifier(self._folder)
        self._template = ChatTemplate(self.name, self._folder)

    def load(self) -> ComparisonScorer:
        """The model with its weights."""
        model = load_classifier(self._folder, self._options)
        template = self._template or ChatTemplate(self.name, self._folder)
        return StockScorer(self.name, model, template, self._options.row_tokens)

    def release(self) -> None:
        """Free the model's memory."""
        free_memory()


def check_classifier(folder: Path) -> None:
    """Check that a folder's ``config.json`` belongs to a one-label classifier that transformers supports without remote code.

    Raises:
        UnsupportedModel: it does not; the message has the reason.
        PolarError: the folder was saved by polar.
    """
    from transformers import AutoConfig

    check_config_file(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers may raise any exception for an invalid value
        raise UnsupportedModel(f"{folder}: {first_line(error)} (code of a model's folder is never run)") from error
    architecture = (config.architectures or ["no architecture"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise UnsupportedModel(f"{folder}: hf: takes a *ForSequenceClassification model, this is {architecture}")
    if config.num_labels != 1:
        raise UnsupportedModel(f"{folder}: hf: takes a reward model with one label, this has {config.num_labels}")
    if isinstance(read_json(folder / "config.json").get("polar"), dict):
        raise PolarError(f"{folder}: it is a model saved by polar, which has no chat template: name it without hf:")


@without_bars()
def load_classifier(folder: Path, options: ModelOptions) -> Any:
    """The model in evaluation mode.

    Raises:
        UnsupportedModel: weights are missing, have another shape, are not finite, or can't be read by transformers.
    """
    from transformers import AutoModelForSequenceClassification

    placement = options.placement()
    check_weights(folder)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype_of(placement["dtype"]), trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers may raise any exception for an invalid value
        raise UnsupportedModel(f"{folder}: {first_line(error)}") from error
    # transformers initialises missing tensors at random and only warns, so a model without its head would score noise (trl 381).
    if missing := loading["missing_keys"]:
        raise UnsupportedModel(f"{folder}: {len(missing)} tensors are missing, first {min(missing)!r}")
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UnsupportedModel(f"{folder}: tensor {name!r} holds NaN or infinite values")
    model.config.use_cache = False  # no text is generated
    return model.to(placement["device"]).eval()


class ChatTemplate:
    """Converts a prompt and an answer to token ids, as the folder's own tokenizer does.

    name: the contender's name, for messages. The ids are those of ``tokenizer.json``: for some families transformers 5 builds
    another tokenizer, which may split digits differently.

    Raises:
        PolarError: there is no tokenizer, or it has no chat template.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._tokenizer = whole_tokenizer(folder)
        self._template = load_auto_tokenizer(folder)
        if not getattr(self._template, "chat_template", None):
            raise PolarError(
                f"{folder}: its tokenizer has no chat template, so it is not known how it reads a prompt and an answer"
            )

    def ids(self, comparison: Comparison, number: int) -> list[list[int]]:
        """The token ids of every candidate. number: the number of the comparison, for messages.

        Raises:
            PolarError: the template refuses the messages, or the comparison has the wrapper ``pretrain``.
        """
        label = f"{self._name}: comparison {number}"
        if comparison.wrapper == "pretrain":
            raise PolarError(f"{label} continues a text (wrapper pretrain); a chat template has no form for it")
        prompt = _messages(comparison.prompt, "user")
        try:
            texts = [
                self._template.apply_chat_template([*prompt, *_messages(candidate, "assistant")], tokenize=False)
                for candidate in comparison.candidates
            ]
        except Exception as error:  # a template is a program and may raise any exception
            raise PolarError(f"{label}: the chat template refuses it: {first_line(error)}") from error
        # The template's text is complete, and a tokenizer that adds a BOS would add a second one.
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]


def _messages(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


class StockScorer:
    """Scores in right-padded batches, sorted by length, of at most ``row_tokens`` tokens including padding."""

    def __init__(self, name: str, model: Any, template: ChatTemplate, row_tokens: int) -> None:
        self._name, self._model, self._template, self._row_tokens = name, model, template, row_tokens
        self._padding = model.config.pad_token_id
        self._max_positions = getattr(model.config, "max_position_embeddings", None)

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """A list of scores for each comparison. Candidates of equal ids get one score and the note ``tied``.

        Raises:
            ScoreError: a sequence can't be computed, for example because it is longer than the model's positions.
        """
        done = 0
        for window in windows(comparisons, _WINDOW):
            ids = [self._template.ids(comparison, done + i) for i, comparison in enumerate(window, 1)]
            distinct = list({tuple(sequence): None for group in ids for sequence in group})
            scores = dict(zip(distinct, self._scores(distinct), strict=True))
            for group in ids:
                keys = [tuple(sequence) for sequence in group]
                yield NotedScores([scores[key] for key in keys], [self._notes(key, keys) for key in keys])
            done += len(window)

    def _notes(self, key: tuple[int, ...], keys: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
        positions = self._max_positions or len(key)
        notes = {"beyond_positions": len(key) > positions, "tied": keys.count(key) > 1}
        return tuple(note for note, holds in notes.items() if holds)

    def _scores(self, sequences: Sequence[tuple[int, ...]]) -> list[float]:
        scores = [0.0] * len(sequences)
        for batch in self._batches(sequences):
            for index, score in zip(batch, self._forward([sequences[index] for index in batch]), strict=True):
                scores[index] = score
        return scores

    def _batches(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Batches of indices by length, the longest first, so that the first batch shows whether memory suffices."""
        batch: list[int] = []
        for index in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
            if batch and (len(batch) + 1) * len(sequences[batch[0]]) > self._row_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[tuple[int, ...]]) -> list[float]:
        """The scores of one batch.

        transformers reads the score at the last token that is not the config's padding token, alone and in a batch. Without a
        padding token in the config it reads the score at the end. To keep this position in a batch, the padding must be a token
        that no sequence contains.
        """
        padding = self._padding
        if padding is None:
            used = {token for sequence in sequences for token in sequence}
            padding = next(token for token in range(len(used) + 1) if token not in used)
            if padding >= self._model.config.vocab_size and len(sequences) > 1:
                return [score for sequence in sequences for score in self._forward([sequence])]
        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), padding)
        mask = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        device = self._model.device
        try:
            self._model.config.pad_token_id = padding
            logits = self._model(ids.to(device), attention_mask=mask.to(device)).logits
        except (IndexError, RuntimeError) as error:
            raise ScoreError(f"{self._name}: sequences of up to {width:,} tokens can't be scored: {first_line(error)}") from error
        finally:
            self._model.config.pad_token_id = self._padding
        return logits[:, 0].float().tolist()  # type: ignore[no-any-return]
