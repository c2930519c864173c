"""The reward model: a stock transformers backbone, a bias-free linear head, and attention over prefix trees."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from polar_rm import attention
from polar_rm.attention import TreeLayout
from polar_rm.checkpoints.native import add_role_tokens, new_embeddings, padding_token, read_specials, save_native
from polar_rm.checkpoints.sources import gguf_in, gguf_options, gguf_parsed_once, load_auto_tokenizer, model_folder
from polar_rm.encoding import Encoder, EncoderSettings, load_tokenizer
from polar_rm.errors import PolarError, UnsupportedModel
from polar_rm.packing import PackedRow, pack
from polar_rm.records import Comparison, Text, Wrapper

SUPPORTED = ("llama", "qwen2", "qwen3", "mistral")

# Shapes for training from scratch: hidden size, layers, heads, key/value heads, feed-forward size. Backbone parameters without
# the embedding are in the name; 50m to 1b cover the range of the paper's scaling law (section 4.4; it gives no shapes).
PRESETS: dict[str, tuple[int, int, int, int, int]] = {
    "1m": (128, 4, 4, 2, 384),
    "5m": (256, 6, 4, 2, 768),
    "15m": (384, 8, 6, 2, 1152),
    "50m": (640, 10, 10, 5, 1792),
    "100m": (768, 14, 12, 4, 2304),
    "200m": (1024, 16, 16, 8, 3072),
    "400m": (1280, 20, 20, 10, 3840),
    "1b": (2048, 22, 16, 8, 5632),
}

# Equal to fp32 rounding; a wrong mask is off by 1e-2 or more.
_EQUALITY_TOLERANCE = 1e-4


class RewardModel(nn.Module):
    """r(prompt, reference, candidate) for every candidate of a row of prefix trees.

    ``backbone`` is the transformers ``*ForSequenceClassification`` model itself; no module of it is replaced. Attention is the
    function that its config names; hooks and :class:`_InChunks` leave out or divide work without a change to scores. The head and
    the scores are float32 whatever the backbone computes in (open-instruct 1387).
    """

    def __init__(self, backbone: PreTrainedModel, encoder: Encoder, specials: Mapping[str, str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.specials = dict(specials)
        backbone.score.float()
        if backbone.config.model_type in SUPPORTED and not hasattr(backbone, "_leaves_out_work"):
            backbone._leaves_out_work = True  # hooks stay with the backbone, which may be wrapped again
            _only_score_positions(backbone.base_model)
            for layer in backbone.base_model.layers[:-1]:
                _InChunks(layer.mlp)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, dtype: str = "float32", device: str = "cpu", implementation: str | None = None
    ) -> Self:
        """Load a native checkpoint.

        dtype: of the backbone: float32, bfloat16 or float16. implementation: name of a registered tree attention; by default
        the fast one for the device.

        Raises:
            UnsupportedModel: not a one-label reward model, a family that fails the equality check, missing or NaN weights.
            EncoderMismatch: the folder's tokenizer or encoder settings are not those it was trained with.
        """
        config = read_config(directory)
        if not (config.architectures or [""])[0].endswith("ForSequenceClassification") or config.num_labels != 1:
            raise UnsupportedModel(
                f"{directory}: a reward model is a *ForSequenceClassification checkpoint with one label, this is "
                f"{config.architectures} with {config.num_labels}; for a language model use model.init"
            )
        encoder = Encoder.from_pretrained(directory)
        backbone = _load_backbone(directory, config, dtype, device, implementation, new_head=False)
        model = cls(backbone, encoder, read_specials(directory)).to(device).eval()
        _check_family(model, str(directory))
        return model

    @classmethod
    @gguf_parsed_once()
    def from_causal_lm(
        cls,
        directory: str | Path,
        *,
        settings: EncoderSettings | None = None,
        n_layers: int | None = None,
        gguf_file: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        implementation: str | None = None,
        seed: int = 0,
    ) -> Self:
        """A reward model on a language model's backbone: zero-initialised head (the first loss is ln 2), role tokens added.

        directory: a folder or ``package:NAME`` (see :func:`model_folder`). gguf_file: which GGUF in it, where there are several.
        n_layers: keep only the first layers (a small model of a pre-trained one's lower half). seed: of the embeddings of added
        tokens.
        """
        directory = model_folder(directory)
        gguf_file = gguf_in(directory, gguf_file)
        config = read_config(directory, gguf_file)
        config.num_labels = 1
        if n_layers is not None:
            if not 1 <= n_layers <= config.num_hidden_layers:
                raise PolarError(f"n_layers must be 1 to {config.num_hidden_layers}, not {n_layers}")
            _truncate(config, n_layers)
        tokenizer, specials = _read_tokenizer(directory, gguf_file)
        backbone = _load_backbone(directory, config, dtype, device, implementation, new_head=True, gguf_file=gguf_file)
        return cls._build(backbone, tokenizer, specials, settings, seed).to(device)

    @classmethod
    def from_preset(
        cls,
        preset: str,
        tokenizer_directory: str | Path,
        *,
        settings: EncoderSettings | None = None,
        gguf_file: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        implementation: str | None = None,
        seed: int = 0,
    ) -> Self:
        """A randomly initialised Llama of a preset size, with another model's tokenizer."""
        if preset not in PRESETS:
            raise PolarError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
        tokenizer_directory = model_folder(tokenizer_directory)
        tokenizer, specials = _read_tokenizer(tokenizer_directory, gguf_in(tokenizer_directory, gguf_file))
        config = preset_config(
            preset,
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=(settings or EncoderSettings()).max_length,
            attn_implementation=_implementation(implementation, device),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = AutoModelForSequenceClassification.from_config(config, dtype=_dtype(dtype))
        return cls._build(backbone, tokenizer, specials, settings, seed).to(device)

    @classmethod
    def _build(
        cls,
        backbone: PreTrainedModel,
        tokenizer: Tokenizer,
        specials: dict[str, str],
        settings: EncoderSettings | None,
        seed: int,
    ) -> Self:
        tokenizer = add_role_tokens(tokenizer)
        _add_embeddings(backbone, tokenizer.get_vocab_size(), seed)
        nn.init.zeros_(backbone.score.weight)
        model = cls(backbone, Encoder(tokenizer, settings), specials)
        model.specials["pad_token"] = pad = padding_token(specials)
        backbone.config.pad_token_id = tokenizer.token_to_id(pad)
        # vLLM applies a sigmoid to one-label heads unless the config says regression.
        backbone.config.problem_type = "regression"
        backbone.config.architectures = [type(backbone).__name__]
        _check_family(model, backbone.config.model_type)
        return model

    def forward(self, row: PackedRow) -> torch.Tensor:
        """Scores of all candidates of the row, tree by tree: float32 [n_candidates]."""
        layout = row.layout
        device = row.ids.device
        output = self.backbone.base_model(
            input_ids=row.ids,
            position_ids=layout.position_ids().to(device)[None],
            use_cache=False,  # with a cache, transformers takes restarting positions for one document and leaks between trees
            tree=layout,
        )
        ends = output.last_hidden_state[0, layout.score_positions().to(device)]
        scores: torch.Tensor = self.backbone.score(ends.float())[:, 0]
        return scores.clone()  # FSDP2 hooks its backward to what is returned, and warns of a view

    @torch.inference_mode()
    def score(self, *, prompt: Text, reference: Text, outputs: Sequence[Text], wrapper: Wrapper = "sft") -> list[float]:
        """One raw reward per output. Only differences mean something (design: scores are unbounded).

        Raises:
            ScoreError: a score is not finite.
        """
        from polar_rm.records import ScoreItem
        from polar_rm.scoring import Scorer

        items = [ScoreItem(prompt, reference, output, wrapper) for output in outputs]
        return [scored.reward for scored in Scorer(self).score(items)]

    def save(self, directory: str | Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a native checkpoint atomically. ``weights``: the state dict to write instead of this module's own (the
        trainer's float32 master weights)."""
        save_native(directory, self.backbone.config, weights or self.backbone.state_dict(), self.encoder, self.specials)

    @property
    def device(self) -> torch.device:
        weight: torch.Tensor = self.backbone.score.weight
        return weight.device


def _only_score_positions(decoder: Any) -> None:
    """In the last layer only keys and values are computed for every token; what comes after runs where a score is read.

    Nothing attends to a last layer's output, so scores and gradients stay the same. It saves nearly all of that layer: little in
    a deep model, a sixth in one of six layers. Hooks of the stock modules: what goes in is gathered, what comes out is
    scattered into zeros. Those of the layer itself run again where activation checkpointing calls it again, with its own row.
    """
    layer = decoder.layers[-1]
    layer.register_forward_pre_hook(_note, with_kwargs=True)
    for first, last in (
        (layer.self_attn.q_proj, layer.self_attn.q_proj),
        (layer.self_attn.o_proj, layer.self_attn.o_proj),
        (layer.post_attention_layernorm, layer.mlp),
        (decoder.norm, decoder.norm),
    ):
        first.register_forward_pre_hook(_gather)
        last.register_forward_hook(_scatter)


class _LastLayer(threading.local):
    """The row whose last layer this thread computes: threads may share a model, and all of them its hooks."""

    positions: torch.Tensor | None = None
    n_tokens = 0


_LAST_LAYER = _LastLayer()


def _note(
    layer: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]] | None:
    tree: TreeLayout | None = kwargs.get("tree")  # absent where transformers is called without us
    if tree is None:
        _LAST_LAYER.positions = None
        return None
    _LAST_LAYER.positions = tree.score_positions().to(args[0].device)
    _LAST_LAYER.n_tokens = args[0].shape[1]
    return args, kwargs | {"tree": tree.last}


def _gather(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    if _LAST_LAYER.positions is None:
        return None
    return (args[0][:, _LAST_LAYER.positions],)


def _scatter(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    if _LAST_LAYER.positions is None:
        return output
    return output.new_zeros(1, _LAST_LAYER.n_tokens, output.shape[-1]).index_copy(1, _LAST_LAYER.positions, output)


class _InChunks:
    """Stands in for the ``forward`` of a module that treats every token alike, and on a CPU in inference mode gives it so many
    tokens at a time: what it computes in between then stays in the cache. For a whole row these would be the largest tensors of
    all, each in memory that the system has just handed out page by page. Compiled code keeps none of them, and would be compiled
    again for every number of chunks.
    """

    TOKENS = 512

    def __init__(self, module: nn.Module) -> None:
        self._whole = module.forward
        module.forward = self

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if not torch.is_inference_mode_enabled() or hidden.device.type != "cpu" or torch.compiler.is_compiling():
            whole: torch.Tensor = self._whole(hidden)
            return whole
        return torch.cat([self._whole(part) for part in hidden.split(self.TOKENS, 1)], 1)


def preset_config(preset: str, **options: Any) -> PretrainedConfig:
    """A one-label Llama of a size from ``PRESETS``. options: what else its config takes."""
    hidden, layers, heads, key_value_heads, feed_forward = PRESETS[preset]
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=feed_forward,
        num_labels=1,
        **options,
    )


def read_config(directory: str | Path, gguf_file: str | None = None) -> PretrainedConfig:
    """A model folder's config.

    Raises:
        UnsupportedModel: transformers doesn't know it, or prefix trees are not exact with it. PolarError: no such folder.
    """
    if not Path(directory).is_dir():
        raise PolarError(f"{directory}: no such folder (models are read from local folders)")
    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, **options)
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedModel(f"{directory}: {_first_line(error)}") from error
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        raise UnsupportedModel(f"{directory}: {config.model_type} with a sliding window: prefix trees need full causal attention")
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        raise UnsupportedModel(f"{directory}: {config.model_type} is not a causal decoder")
    return config


def _load_backbone(
    directory: str | Path,
    config: PretrainedConfig,
    dtype: str,
    device: str,
    implementation: str | None,
    *,
    new_head: bool,
    gguf_file: str | None = None,
) -> PreTrainedModel:
    options: dict[str, Any] = {"config": config, "dtype": _dtype(dtype), "trust_remote_code": False}
    options |= gguf_options(gguf_file)
    try:
        backbone, loading = AutoModelForSequenceClassification.from_pretrained(
            directory,
            attn_implementation=_implementation(implementation, device),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModel(f"{directory}: {_first_line(error)}") from error
    for name, *shapes in sorted(loading["mismatched_keys"]):
        found, expected = (list(shape) for shape in shapes)
        raise UnsupportedModel(f"{directory}: tensor {name!r} has the shape {found}, by config.json it is {expected}")
    # transformers fills missing tensors at random and only warns: a reloaded model would score noise (trl 381).
    missing = {key for key in loading["missing_keys"] if not (new_head and key == "score.weight")}
    if missing:
        raise UnsupportedModel(f"{directory}: {len(missing)} tensors are missing, first {min(missing)!r}")
    for name, tensor in backbone.state_dict().items():
        if not (new_head and name == "score.weight") and not torch.isfinite(tensor).all():
            raise UnsupportedModel(f"{directory}: tensor {name!r} holds NaN or infinite values")
    return backbone


def _read_tokenizer(directory: str | Path, gguf_file: str | None) -> tuple[Tokenizer, dict[str, str]]:
    if gguf_file is None:
        return load_tokenizer(directory), read_specials(directory)
    tokenizer = load_auto_tokenizer(directory, gguf_file)
    texts = {key: getattr(tokenizer, key, None) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return tokenizer.backend_tokenizer, {key: text for key, text in texts.items() if text}


def _truncate(config: PretrainedConfig, n_layers: int) -> None:
    config.num_hidden_layers = n_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n_layers]


def _add_embeddings(backbone: PreTrainedModel, vocabulary: int, seed: int) -> None:
    old = backbone.get_input_embeddings().weight.shape[0]
    if vocabulary <= old:
        return
    backbone.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        table = backbone.get_input_embeddings().weight
        table[old:] = new_embeddings(table[:old], vocabulary - old, seed)


def _implementation(name: str | None, device: str) -> str:
    attention.register()
    return name or attention.default_attention(torch.device(device))


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise PolarError(f"unknown dtype {name!r}; known: {', '.join(known)}")
    return known[name]


def _check_family(model: RewardModel, name: str) -> None:
    """Families that are not known to be exact must show it: tree scores against each candidate alone, on this very model."""
    config = model.backbone.config
    if config.model_type in SUPPORTED:
        return
    difference = equality_error(model)
    if not difference <= _EQUALITY_TOLERANCE:
        raise UnsupportedModel(
            f"{name}: backbones of type {config.model_type!r} are not supported (known: {', '.join(SUPPORTED)}), and on this "
            f"one tree attention differs from separate sequences by {difference:.1e}"
        )
    warnings.warn(f"{name}: {config.model_type!r} is not a known backbone; it passed the equality check", stacklevel=3)


@torch.inference_mode()
def equality_error(model: RewardModel) -> float:
    """Largest relative difference of a tree's last hidden states to those of transformers' own attention on each sequence."""
    candidates = ("one", "two words", "three words here")
    tree = model.encoder.encode(Comparison("Say something.", "a word", candidates, (0, 1, 2)))
    row = pack([tree]).to(model.device)
    decoder = model.backbone.base_model
    implementation = model.backbone.config._attn_implementation
    try:
        output = decoder(row.ids, position_ids=row.layout.position_ids().to(model.device)[None], use_cache=False, tree=row.layout)
        together = output.last_hidden_state[0, row.layout.score_positions().to(model.device)]
        model.backbone.set_attn_implementation("eager")
        sequences = [torch.tensor([tree.sequence(i)], device=model.device) for i in range(len(candidates))]
        alone = torch.cat([decoder(ids, use_cache=False).last_hidden_state[:, -1] for ids in sequences])
    except (TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"{model.backbone.config.model_type!r} does not take tree attention: {_first_line(error)}"
        ) from error
    finally:
        model.backbone.set_attn_implementation(implementation)
    return float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
