"""B7: a family that is not known is admitted and trains, or is refused in one line before its data are encoded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import runs, tiny
from support.commands import in_process, refused
from transformers import (
    AutoModelForSequenceClassification,
    BioGptConfig,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    GPT2Config,
    ModernBertDecoderConfig,
    OPTConfig,
    StableLmConfig,
)

from polar_rm.attention.layout import TreeLayout, TreeSpan
from polar_rm.conversion.convert import plan
from polar_rm.errors import UnsupportedModel
from polar_rm.model import exactness
from polar_rm.model.blueprint import language_model_blueprint
from polar_rm.model.layers import compile_layers
from polar_rm.model.reward_model import RewardModel
from polar_rm.training.metrics import training_flops

WIDE = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
NO_LAYERS = "it has no list of decoder layers, no rotary positions"
REFUSED = {
    "gpt2": (GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4), f"{NO_LAYERS}, no intermediate_size in its config"),
    "bloom": (BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4), NO_LAYERS),
    "opt": (OPTConfig(**WIDE, ffn_dim=48, word_embed_proj_dim=32), NO_LAYERS),
    "biogpt": (BioGptConfig(**WIDE), "it has no rotary positions"),
    "falcon": (FalconConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4), "tree attention"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_of_another_structure_is_refused_before_its_weights_are_loaded(tmp_path, family):
    """It is named, with what is missing and the families that are known to be exact."""
    config, missing = REFUSED[family]
    folder = tiny.with_config(tmp_path / "lm", config)
    known = r"\(known: llama, qwen2, qwen3, mistral\)"
    with pytest.raises(
        UnsupportedModel, match=rf"^{folder}: backbones of type '{family}' are not supported {known}: .*{missing}"
    ):
        language_model_blueprint(folder)


def test_a_run_and_a_conversion_are_refused_before_they_begin(tmp_path):
    folder = tiny.with_config(tmp_path / "lm", REFUSED["gpt2"][0])
    runs.comparisons(tmp_path / "train.jsonl", 4)
    refused(in_process("pretrain", runs.config(tmp_path)), "backbones of type 'gpt2'", NO_LAYERS)
    assert not (tmp_path / "run").exists()
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"score.weight": torch.ones(1, 32)}, path, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=f"^{folder}: backbones of type 'gpt2' .*{NO_LAYERS}"):
        plan(folder)


def test_a_model_of_several_parts_is_refused(tmp_path):
    """The sizes in its config are those of its parts."""
    folder = tiny.causal_lm(tmp_path / "lm")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}))
    for n_layers in (None, 1):
        with pytest.raises(UnsupportedModel, match="'gemma3' are not supported .*: its config has no hidden_size"):
            language_model_blueprint(folder, n_layers=n_layers)


def test_a_head_of_another_name_is_refused(tmp_path):
    config = ModernBertDecoderConfig(**WIDE, pad_token_id=2, bos_token_id=0, eos_token_id=1, cls_token_id=0, sep_token_id=1)
    with torch.device("meta"):
        backbone = AutoModelForSequenceClassification.from_config(config)
    # In transformers 4 it also has no rotary positions where other families have them.
    with pytest.raises(UnsupportedModel, match="it has no (rotary positions, no )?linear head 'score' without bias$"):
        exactness.check_structure(backbone, "m")


@pytest.mark.parametrize(
    "config",
    [
        StableLmConfig(**WIDE, num_key_value_heads=2, pad_token_id=2, bos_token_id=0, eos_token_id=1),
        DeepseekV3Config(**WIDE, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16),
    ],
    ids=lambda config: config.model_type,
)
def test_layers_that_do_not_take_a_tree_are_refused_by_name(tmp_path, config):
    """They fail in their own ways: without the tree, or with heads of several sizes. Transformers 4 can't even build StableLM."""
    folder = tiny.with_config(tmp_path / "lm", config)
    refusal = "it (does not accept|can't be built with) tree attention: "
    expected = rf"^{folder}: backbones of type '{config.model_type}' .*: {refusal}"
    with pytest.raises(UnsupportedModel, match=expected):
        RewardModel.from_causal_lm(folder)


@pytest.fixture(scope="module")
def neox(tmp_path_factory) -> RewardModel:
    with pytest.warns(UserWarning, match="'gpt_neox' is not a known backbone; it passed the equality check"):
        return RewardModel.from_causal_lm(tiny.gpt_neox(tmp_path_factory.mktemp("neox") / "lm"))


def test_an_admitted_family_has_flops(neox):
    """Its config has no num_key_value_heads."""
    layout = TreeLayout((TreeSpan(0, 10, (5, 5)),))
    llama = tiny.config("llama", hidden_size=32, intermediate_size=48, num_key_value_heads=4, head_dim=8)
    assert training_flops(neox.backbone.config, layout) == training_flops(llama, layout)
    llama.num_key_value_heads = None
    assert training_flops(neox.backbone.config, layout) == training_flops(llama, layout)


def test_only_the_known_parts_of_an_admitted_familys_layers_are_compiled(neox, monkeypatch):
    """Nobody knows that its layers fit into one graph; a layer of Phi has one norm only."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append(module))
    compiled: list[torch.nn.Module] = []
    first, last = neox.backbone.base_model.layers
    forwards = [first.forward, last.forward]
    assert compile_layers(neox.backbone, torch.float32) is False
    assert compiled == [
        part for layer in (first, last) for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)
    ]
    assert [first.forward, last.forward] == forwards
    compiled.clear()
    monkeypatch.delitem(first._modules, "post_attention_layernorm")
    compile_layers(neox.backbone, torch.float32)
    assert len(compiled) == 5


@pytest.mark.filterwarnings("ignore:.*passed the equality check")
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_admitted_family_trains_in_one_process_and_sharded(tmp_path, ranks):
    tiny.gpt_neox(tmp_path / "lm")
    runs.comparisons(tmp_path / "train.jsonl", 40)
    result = runs.run("pretrain", runs.config(tmp_path, max_steps=2), "row_tokens=150", ranks=ranks)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_dropout_in_attention_is_refused_before_the_data_are_encoded(tmp_path):
    tiny.causal_lm(tmp_path / "lm", attention_dropout=0.1)
    runs.comparisons(tmp_path / "train.jsonl", 4)
    expected = "attention_dropout is 0.1 in its config, but tree attention has no dropout"
    refused(in_process("pretrain", runs.config(tmp_path)), expected)
    assert not (tmp_path / "run/data").exists()
