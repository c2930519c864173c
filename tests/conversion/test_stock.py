"""Reward models as xtuner, TRL and OpenRLHF save them, on stock backbones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from transformers import AutoModelForSequenceClassification

from polar_rm.conversion.convert import convert, plan
from polar_rm.errors import UnsupportedModel
from polar_rm.model.reward_model import RewardModel
from polar_rm.scoring.scorer import Scorer


def rename(folder: Path, change, **config) -> Path:
    """Change the tensors of a saved reward model, and its config as a trainer without our section would write it."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    for key in ("polar", "problem_type", "pad_token_id"):
        values.pop(key, None)
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def prefix(head):
    return lambda tensors: {name.replace("score.", f"{head}."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", prefix("v_head")),
        ("qwen2", prefix("value_head")),
        ("qwen3", prefix("score")),
        ("llama", lambda tensors: {name.removeprefix("model."): tensor for name, tensor in prefix("v_head")(tensors).items()}),
        ("llama", lambda tensors: tensors | {"score.bias": torch.zeros(1), "lm_head.weight": torch.ones(400, 64)}),
    ],
    ids=["v_head", "value_head", "score", "bare backbone", "zero bias and language head"],
)
def test_heads_of_other_trainers_are_converted(tmp_path, family, change):
    model = tiny.reward_model(tmp_path / "lm", family)
    model.save(tmp_path / "theirs")
    rename(tmp_path / "theirs", change, architectures=["SomeRewardModel"])
    convert(tmp_path / "theirs", tmp_path / "native")
    ours = RewardModel.from_pretrained(tmp_path / "native")
    question = {"prompt": "p", "reference": "the fox", "outputs": ["a dog", "the quick fox"]}
    assert Scorer(ours).score_outputs(**question) == pytest.approx(Scorer(model).score_outputs(**question), abs=1e-5)
    config = json.loads((tmp_path / "native/config.json").read_text())
    assert (config["problem_type"], config["pad_token_id"]) == ("regression", 2)
    assert ours.encoder.settings.max_length == 2048  # the backbone's number of positions


def test_role_tokens_are_added_as_training_adds_them(tmp_path):
    theirs = tiny.causal_lm(tmp_path / "theirs")
    rename(theirs, lambda tensors: tensors | {"score.weight": torch.randn(1, 64)})
    conversion = convert(theirs, tmp_path / "native")
    assert "added <|reward|> and [UNUSED_TOKEN_130]" in conversion.notes[0]
    with pytest.warns(
        UserWarning, match=r"its tokens <\|reward\|> and \[UNUSED_TOKEN_130\] were never trained.*--model hf:FOLDER"
    ):
        ours = RewardModel.from_pretrained(tmp_path / "native")  # B4
    trained = RewardModel.from_causal_lm(tiny.causal_lm(tmp_path / "lm"))
    assert ours.encoder.fingerprint == trained.encoder.fingerprint
    embeddings = [model.backbone.get_input_embeddings().weight for model in (ours, trained)]
    assert torch.equal(*embeddings)


def test_the_scoring_token_of_xtuners_config_is_used(tmp_path):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "theirs")
    rename(tmp_path / "theirs", prefix("score"), reward_token_id=4)
    assert plan(tmp_path / "theirs").encoder.settings.reward_token == "<|im_end|>"
    rename(tmp_path / "theirs", prefix("score"), reward_token_id=9999)
    with pytest.raises(UnsupportedModel, match="not an id of its tokenizer"):
        plan(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "score.weight"}, {}, "no reward head"),
        (lambda t: t | {"v_head.weight": t["score.weight"].clone()}, {}, "more than one reward head, score and v_head"),
        (lambda t: t | {"score.bias": torch.ones(1)}, {}, "'score.bias' is not zero"),
        (lambda t: t | {"score.weight": torch.zeros(2, 64)}, {}, r"'score.weight' has the shape \[2, 64\]"),
        (lambda t: t | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, {}, "unexpected tensor"),
        (lambda t: t, {"vocab_size": 500}, "vocabulary mismatch"),
        (lambda t: t, {"normalize_reward": True, "mean": 0.3, "std": 2.0}, "shifts its scores"),
        (lambda t: t, {"model_type": "internlm2"}, "internlm2"),
        (lambda t: t, {"model_type": "mistral", "sliding_window": 16}, "sliding window"),
        (lambda t: t, {"model_type": "mamba"}, "no sequence classification for 'mamba'"),
        (lambda t: t, {"reward_token_id": 2}, "padding token is the scoring token"),
        (lambda t: t, {"reward_token_id": "x"}, "reward_token_id x is not an id of its tokenizer"),
        (lambda t: t, {"reward_token_id": -1}, "reward_token_id -1 is not an id of its tokenizer"),
        (lambda t: t, {"reward_token_id": 10**30}, "is not an id of its tokenizer"),
        (lambda t: t, {"pad_token_id": 10**30}, "theirs: Padding_idx must be within"),
        (lambda t: t, {"architectures": [1]}, r"architectures is \[1\]: expected a list of names"),
    ],
)
def test_models_that_can_not_be_converted_exactly_are_refused(tmp_path, change, config, reason):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "theirs")
    rename(tmp_path / "theirs", change, **config)
    with pytest.raises(UnsupportedModel, match=reason):
        plan(tmp_path / "theirs")


def test_the_result_is_a_stock_checkpoint(tmp_path):
    tiny.reward_model(tmp_path / "lm", "qwen2").save(tmp_path / "theirs")
    rename(tmp_path / "theirs", prefix("value_head"))
    convert(tmp_path / "theirs", tmp_path / "native")
    _, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
