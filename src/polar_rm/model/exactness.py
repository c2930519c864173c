"""Families that are not known: whether a backbone is built like a known one, and the equality check of trees."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from polar_rm.common.text import first_line
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import UnsupportedModel
from polar_rm.model.backbones import SUPPORTED, not_supported
from polar_rm.model.packing import pack
from polar_rm.model.skipping import hidden_at_scores
from polar_rm.records import Comparison

# fp32 rounding stays below this; a wrong mask gives a difference of 1e-2 or more.
_EQUALITY_TOLERANCE = 1e-4


def check_structure(backbone: PreTrainedModel, name: str) -> None:
    """Check that a backbone has the parts of a known family that sharding, compilation, the head and a run's FLOPs are made of.

    backbone: only its modules are looked at, so it may be on the meta device. name: of the model, for the message.

    Raises:
        UnsupportedModel: a part is missing; the message has the family, what is missing and the known families.
    """
    decoder, head = backbone.base_model, getattr(backbone, "score", None)
    has = {
        "list of decoder layers": isinstance(getattr(decoder, "layers", None), nn.ModuleList),
        "rotary positions": hasattr(decoder, "rotary_emb"),
        "linear head 'score' without bias": isinstance(head, nn.Linear) and head.bias is None,
        "intermediate_size in its config": type(getattr(backbone.config, "intermediate_size", None)) is int,
    }
    if missing := [part for part, is_there in has.items() if not is_there]:
        raise UnsupportedModel(f"{name}: {not_supported(backbone.config, 'it has no ' + ', no '.join(missing))}")


def check_family(backbone: PreTrainedModel, encoder: Encoder, name: str) -> None:
    """Run the equality check on a backbone of a family that is not known to be exact: a tree against separate candidates.

    Raises:
        UnsupportedModel: the results differ, or its layers do not take the tree.
    """
    config = backbone.config
    if config.model_type in SUPPORTED:
        return
    try:
        difference = equality_error(backbone, encoder)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # layers of another kind fail in their own ways
        reason = f"it does not accept tree attention: {first_line(error)}"
        raise UnsupportedModel(f"{name}: {not_supported(config, reason)}") from error
    if not difference <= _EQUALITY_TOLERANCE:
        reason = f"tree attention differs from separate sequences by {difference:.1e}"
        raise UnsupportedModel(f"{name}: {not_supported(config, reason)}")
    warnings.warn(f"{name}: {config.model_type!r} is not a known backbone; it passed the equality check", stacklevel=3)


@torch.inference_mode()
def equality_error(backbone: PreTrainedModel, encoder: Encoder) -> float:
    """The largest relative difference between a tree's last hidden states and those of transformers' attention on each sequence.

    The row has a second tree, whose positions lie beyond the backbone's original length. If RoPE frequencies depend on the
    longest position of a row, the second tree changes the results of the first.
    """
    candidates = ("one", "two words", "three words here")
    tree = encoder.encode(Comparison("Say something.", "a word", candidates, (0, 1, 2)))
    row = pack([tree, tree]).to(backbone.device)
    decoder = backbone.base_model
    implementation = backbone.config._attn_implementation
    try:
        positions = row.tree.positions[None].clone()
        positions[:, tree.n_tokens :] += _first_long_position(backbone.config, tree.n_tokens)
        output = decoder(row.ids, position_ids=positions, use_cache=False, tree=row.tree)
        in_tree = hidden_at_scores(backbone, output.last_hidden_state, row.tree)[: len(candidates)]
        backbone.set_attn_implementation("eager")
        sequences = [torch.tensor([tree.sequence(i)], device=backbone.device) for i in range(len(candidates))]
        separate = torch.cat([decoder(ids, use_cache=False).last_hidden_state[:, -1] for ids in sequences])
    finally:
        backbone.set_attn_implementation(implementation)
    return float((in_tree - separate).abs().max() / separate.abs().max().clamp(min=1e-6))


def _first_long_position(config: PretrainedConfig, n_tokens: int) -> int:
    """The first position of a tree far beyond the original length, or at the end of a table of learned positions."""
    values = config.to_dict()
    rope = values.get("rope_parameters") or values.get("rope_scaling")
    length = int(values.get("max_position_embeddings") or values.get("n_positions") or 0)
    if rope is None:
        return max(0, length - n_tokens)
    return 8 * (int(rope.get("original_max_position_embeddings") or 0) or length)
