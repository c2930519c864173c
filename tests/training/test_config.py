from typing import get_args

import pytest

from polar_rm.common.config import Config, load_config
from polar_rm.errors import ConfigError
from polar_rm.training.config import TrainConfig


def config(*overrides):
    return load_config(TrainConfig, [], ["model.init=x", "data.train=[x]", "output=x", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=-1"], "seed: input should be greater than or equal to 0, not -1"),
        (["seed=9223372036854775808"], "seed: input should be less than 9223372036854775808"),
        (["optim.lr=0"], r"optim\.lr: input should be greater than 0, not 0"),
        (["optim.lr=-1e-4"], r"optim\.lr: input should be greater than 0, not -0.0001"),
        (["optim.lr=.nan"], r"optim\.lr: input should be greater than 0, not nan"),
        (["optim.betas=[1.5, 0.9]"], r"optim\.betas\.0: input should be less than 1, not 1.5"),
        (["optim.betas=[0.9, -0.1]"], r"optim\.betas\.1: input should be greater than or equal to 0, not -0.1"),
        (["optim.eps=0"], r"optim\.eps: input should be greater than 0, not 0"),
        (["optim.weight_decay=-1"], r"optim\.weight_decay: input should be greater than or equal to 0, not -1"),
        (["optim.clip=0"], r"optim\.clip: input should be greater than 0, not 0"),
        (["lora.alpha=0"], r"lora\.alpha: input should be greater than 0, not 0"),
    ],
)
def test_numbers_out_of_range_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval_every=10"], r"eval_every needs data\.eval"),
        (["batch_size=paper", "max_steps=10"], "batch_size=paper depends on the tokens of whole epochs"),
        (["model={init: null, resume_from: x, gguf_file: x.gguf}"], "model: gguf_file needs init or tokenizer"),
        (["loss={objective: listwise, margin: 1, focal: true}"], "loss: margin, focal: only for bradley_terry"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


def test_values_near_a_bound_are_accepted():
    config("optim={lr: paper, betas: [0, 0.999], eps: 1e-30, clip: .inf}", "eval_every=10", "data.eval=[x]")
    config("model={init: null, preset: 1m, tokenizer: x, gguf_file: x.gguf}", "seed=9223372036854775807")


def descriptions(kind):
    for name, field in kind.model_fields.items():
        yield f"{kind.__name__}.{name}", field.description
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Config):
                yield from descriptions(inner)


def test_every_key_has_a_description():
    """`polar config` shows the descriptions; architecture 3.10."""
    texts = dict(descriptions(TrainConfig))
    assert len(texts) > 40
    assert [name for name, text in texts.items() if not text or not text.rstrip("`").endswith(".")] == []


@pytest.mark.parametrize(("old", "new"), [("dtype=fp32", "precision"), ("token_budget=9", "row_tokens")])
def test_an_option_name_of_other_tools_is_refused_with_ours(old, new):
    with pytest.raises(ConfigError, match=f"unknown key '{old.split('=')[0]}'; did you mean '{new}'"):
        config(old)
