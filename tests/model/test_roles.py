"""H3, H8, H20: role tokens, lengths and BOS of a reward model on a given language model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from support import runs, tiny
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM

from polar_rm.common.config import load_config, to_yaml
from polar_rm.conversion.convert import plan
from polar_rm.encoding.settings import REWARD_TOKEN, SEPARATOR_TOKEN, EncoderSettings, settings_within
from polar_rm.errors import PolarError
from polar_rm.model.blueprint import language_model_blueprint
from polar_rm.model.reward_model import RewardModel
from polar_rm.training.config import EncoderConfig, LoraConfig, TrainConfig
from polar_rm.training.lora import add_lora
from polar_rm.training.parallel import World
from polar_rm.training.prepare import prepare, read_blueprint

KNOWN = 400


def padded(folder: Path, rows: int = 512, fill: float = 0.0, tokenizer: Tokenizer | None = None) -> Path:
    """A language model whose embedding has more rows than its tokenizer has tokens, like Qwen's."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny.config("qwen2", vocab_size=rows))
    with torch.no_grad():
        model.get_input_embeddings().weight[KNOWN:] = fill
    tiny.causal_lm(folder, "qwen2")
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def with_roles() -> Tokenizer:
    tokenizer = Tokenizer.from_str(tiny.tokenizer().to_str())
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (SEPARATOR_TOKEN, REWARD_TOKEN)])
    return tokenizer


@pytest.mark.parametrize("fill", [0.0, 7.0])
@pytest.mark.parametrize("tokenizer", [None, with_roles], ids=["added", "never trained"])
def test_role_tokens_start_like_known_ones_and_different(tmp_path, fill, tokenizer):
    """H3. A padded embedding has rows for them already, which are equal and may be zero."""
    model = RewardModel.from_causal_lm(padded(tmp_path, fill=fill, tokenizer=tokenizer and tokenizer()))
    table = model.backbone.get_input_embeddings().weight.detach()
    assert table.shape[0] == 512
    separator, reward = table[model.encoder.separator_id], table[model.encoder.reward_id]
    known = table[:KNOWN]
    assert not torch.equal(separator, reward)
    for row in (separator, reward):
        assert ((row - known.mean(0)) / known.std(0)).square().mean().sqrt() == pytest.approx(1, abs=0.3)
    assert torch.equal(table[KNOWN + 2 :], torch.full_like(table[KNOWN + 2 :], fill))  # padding is unchanged
    assert model.untrained_tokens == (SEPARATOR_TOKEN, REWARD_TOKEN)


def test_trained_role_tokens_are_unchanged(tmp_path):
    """H3."""
    folder = padded(tmp_path, tokenizer=with_roles())
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[KNOWN : KNOWN + 2] = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    reward_model = RewardModel.from_causal_lm(folder)
    assert torch.equal(reward_model.backbone.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert reward_model.untrained_tokens == ()


def test_lora_with_untrained_role_tokens_gives_a_warning(tmp_path):
    """H3."""
    pytest.importorskip("peft")
    model = RewardModel.from_causal_lm(tiny.causal_lm(tmp_path / "lm"))
    with pytest.warns(UserWarning, match=r"lora leaves embeddings.*<\|reward\|> and \[UNUSED_TOKEN_130\]"):
        add_lora(model, LoraConfig(rank=2, alpha=4), seed=0)
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    saved = RewardModel.from_pretrained(tmp_path / "rm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(saved, LoraConfig(rank=2, alpha=4), seed=0)


def test_lengths_of_a_new_model_are_no_longer_than_its_positions(tmp_path):
    """H8."""
    folder = tiny.causal_lm(tmp_path / "lm")  # it has 2,048 positions
    settings = RewardModel.from_causal_lm(folder).encoder.settings
    assert (settings.max_length, settings.max_response_length) == (2048, 512)
    values = EncoderConfig(template="polar-chat", max_length=1000).settings()
    settings = RewardModel.from_causal_lm(folder, settings=values).encoder.settings
    assert (settings.template, settings.max_length, settings.max_response_length) == ("polar-chat", 1000, 250)
    model = RewardModel.from_causal_lm(folder)
    model.save(tmp_path / "rm")
    assert json.loads((tmp_path / "rm/tokenizer_config.json").read_text())["model_max_length"] == 2048
    with pytest.warns(UserWarning, match="max_length 16,384 is more than the backbone's 2,048 positions"):
        assert RewardModel.from_causal_lm(folder, settings=EncoderSettings()).encoder.settings.max_length == 16384
    assert RewardModel.from_preset("1m", folder).encoder.settings == EncoderSettings()


@pytest.mark.parametrize("positions", [256, 2048, 100_000])
@pytest.mark.parametrize(
    "encoder", [None, {}, {"template": "polar-chat"}, {"thinking": "strip"}, {"max_length": 200}, {"max_response_length": 50}]
)
def test_a_config_gives_the_limits_that_python_gives_also_when_it_is_saved_and_read_again(tmp_path, positions, encoder):
    """H8. A config that was printed in full said 16,384 tokens, whatever the backbone had."""
    folder = tiny.causal_lm(tmp_path / "lm", max_position_embeddings=positions)
    wanted = language_model_blueprint(folder, settings=settings_within(positions, **(encoder or {}))).encoder.settings
    assert wanted.max_length == min(positions, 16384, (encoder or {}).get("max_length", positions))
    values = {"output": "o", "data": {"train": ["d"]}, "model": {"init": str(folder), "encoder": encoder}}
    config = TrainConfig.model_validate(values)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    for each in (config, load_config(TrainConfig, [tmp_path / "again.yaml"])):
        assert read_blueprint(each).encoder.settings == wanted
    plain = {**values, "model": {"init": str(folder)}}
    if not encoder:
        assert read_blueprint(TrainConfig.model_validate(plain)).encoder.settings == wanted


def test_lengths_that_a_saved_model_is_given_are_held_against_its_positions_too(tmp_path):
    """H8."""
    RewardModel.from_causal_lm(tiny.causal_lm(tmp_path / "lm")).save(tmp_path / "rm")  # 2,048 positions
    values = {"output": "o", "data": {"train": ["d"]}, "model": {"resume_from": str(tmp_path / "rm")}}
    values["model"]["encoder"] = {"max_length": 4096}
    with pytest.warns(UserWarning, match="rm: max_length 4,096 is more than the backbone's 2,048 positions"):
        settings = read_blueprint(TrainConfig.model_validate(values)).encoder.settings
    assert (settings.max_length, settings.max_response_length) == (4096, 512)
    values["model"]["encoder"] = {"max_length": 1000, "max_response_length": 600}
    with pytest.raises(ValueError, match="max_length 1000 cannot hold a reference and a candidate of 600 tokens"):
        TrainConfig.model_validate(values)


@pytest.mark.parametrize(
    ("kind", "lora"), [("new", None), ("rows", None), ("rows", {"rank": 2}), ("trained", None), ("saved", None)]
)
def test_a_plan_says_what_becomes_of_tokens_that_nobody_trained(tmp_path, kind, lora):
    """H3. Before any weights are loaded."""
    folder = tmp_path / "base"
    if kind == "new":
        tiny.causal_lm(folder)
    else:
        padded(folder, tokenizer=with_roles())
    if kind == "trained":
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.get_input_embeddings().weight[KNOWN : KNOWN + 2] = torch.randn(
                2, 64, generator=torch.Generator().manual_seed(3)
            )
        model.save_pretrained(folder)
    model = {"init": str(folder), "encoder": {"max_length": 256, "max_response_length": 64}}
    if kind == "saved":
        RewardModel.from_causal_lm(folder, settings=EncoderSettings(max_length=256, max_response_length=64)).save(tmp_path / "rm")
        model = {"resume_from": str(tmp_path / "rm")}
    config = load_config(TrainConfig, [runs.config(tmp_path, model=model, lora=lora)])
    notes = [note for note in prepare(config, World(0, 1, torch.device("cpu"))).plan.notes if "embeddings" in note]
    if kind == "trained":
        assert notes == []
        return
    assert len(notes) == 1
    assert notes[0].startswith("the embeddings of <|reward|> and [UNUSED_TOKEN_130] were never trained; they are drawn around")
    assert ("and lora leaves them so" in notes[0]) == bool(lora) != ("and trained from there" in notes[0])


def change_tokenizer(folder: Path, **changes: object) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_bos_that_only_the_config_names_is_added(tmp_path):
    """H20."""
    plain = tiny.causal_lm(tmp_path / "plain")
    assert RewardModel.from_causal_lm(plain).encoder.bos_ids == []
    for value in (False, None, "yes"):
        assert RewardModel.from_causal_lm(change_tokenizer(plain, add_bos_token=value)).encoder.bos_ids == []
    model = RewardModel.from_causal_lm(change_tokenizer(plain, add_bos_token=True))
    assert model.encoder.bos_ids == [0]
    built_in = RewardModel.from_causal_lm(tiny.causal_lm(tmp_path / "built_in", bos=True))
    assert model.encoder.hash == built_in.encoder.hash
    assert model.encoder.encode_outputs("p", "r", ["o"]) == built_in.encoder.encode_outputs("p", "r", ["o"])
    again = RewardModel.from_causal_lm(change_tokenizer(tmp_path / "built_in", add_bos_token=True))
    assert again.encoder.bos_ids == [0]
    model.save(tmp_path / "rm")
    assert RewardModel.from_pretrained(tmp_path / "rm").encoder.hash == model.encoder.hash
    with pytest.raises(PolarError, match="bos_token is '<begin>', which the tokenizer does not have"):
        RewardModel.from_causal_lm(change_tokenizer(plain, bos_token="<begin>"))


def test_a_bos_that_only_the_config_names_is_added_by_conversion(tmp_path):
    """H20."""
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    config = json.loads((tmp_path / "rm/config.json").read_text())
    del config["polar"]
    (tmp_path / "rm/config.json").write_text(json.dumps(config))
    assert plan(tmp_path / "rm").encoder.bos_ids == []
    assert plan(change_tokenizer(tmp_path / "rm", add_bos_token=True)).encoder.bos_ids == [0]
