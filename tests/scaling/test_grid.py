"""The grid: settings that contradict each other, parameters and compute against the model's own, and the order of runs."""

import json

import pytest
import torch
from support import runs, scaling, tiny
from support.commands import refused

from polar_rm.common.config import load_config, to_yaml
from polar_rm.encoded.order import batches
from polar_rm.errors import ConfigError, PolarError
from polar_rm.model.packing import pack
from polar_rm.model.reward_model import RewardModel
from polar_rm.scaling.config import ScalingConfig
from polar_rm.scaling.grid import CorpusSize, Size, make_grid, measure_sizes, steps_of
from polar_rm.scaling.learning_rate import Picked
from polar_rm.scaling.settings import size_name, split_path, training_config
from polar_rm.training.data import encode_corpus
from polar_rm.training.metrics import training_flops

BASE = [
    "output=o",
    "corpus=c",
    "sizes=[1x32, 2x32]",
    "budgets.tokens=[1e6, 2e6]",
    "learning_rates.base=1e-3",
    "training.model.tokenizer=t",
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budgets.per_parameter=[5]"], "budgets: give exactly one of tokens and per_parameter"),
        (["budgets.tokens=[]"], "give exactly one of tokens and per_parameter"),
        (["budgets.tokens=[1000001, 1000002]"], "budgets: two are equal to four digits"),
        (["sizes=[1m, 1m]"], "sizes: one is named twice"),
        (["sizes=[1m, 6]"], "either presets and shapes, or numbers of layers"),
        (["sizes=[2, 6]"], "numbers of layers need training.model.init"),
        (["learning_rates.factors=[1, 2]"], "at least 3 items"),
        (["learning_rates.factors=[1, 2, 2]"], "factors: two of them are equal"),
        (["tune_on=train"], "tune_on: 'train' is none of eval_splits"),
        (["training.max_steps=3"], "training.max_steps: the grid sets it"),
        (["training.optim.lr=3"], "training.optim.lr: the grid sets it"),
        (["training.model=3"], "training.model: expected keys with values"),
        (["training.batch_size=paper"], "training.batch_size: expected a number"),
        (["fit.laws=[joint, joint]"], "laws: one is named twice"),
        (["fit.predict=[{tokens: 3}]"], "give parameters"),
        (["fit.pionts=all"], "unknown key 'fit.pionts'; did you mean 'points'?"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load_config(ScalingConfig, [], [*BASE, *overrides])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with a language model's tokenizer, a corpus of three splits, and the config of a grid."""
    folder = tmp_path_factory.mktemp("grid")
    tiny.causal_lm(folder / "lm")
    (folder / "corpus").mkdir()
    for seed, (split, count) in enumerate({"train": 60, "seen": 8, "other": 8}.items()):
        runs.comparisons(folder / f"corpus/{split}.jsonl", count, seed=seed)
    return folder


def config(folder, **changes):
    training = {
        "model": {"tokenizer": str(folder / "lm"), "encoder": {"max_length": 256, "max_response_length": 64}},
        "batch_size": 8,
    }
    rates = {"base": 0.01, "exponent": -0.5, "tune": "smallest"}
    values = {"sizes": ["2x32", "3x64"], "budgets": {"tokens": [3000, 6000]}, "learning_rates": rates, "training": training}
    base = scaling.config(folder)
    return ScalingConfig.model_validate(base.model_dump(mode="json") | values | changes)


def test_a_key_of_the_training_is_explained_like_everywhere(corpus):
    settings = config(corpus, training={"model": {"tokenizer": str(corpus / "lm")}, "batchsize": 3})
    with pytest.raises(ConfigError, match=r"training: unknown key 'batchsize'; did you mean 'batch_size'\?"):
        training_config(settings, "1m", output=settings.output)


def test_parameters_and_compute_are_those_of_the_model_and_the_trainer(corpus):
    settings = config(corpus)
    encoder = RewardModel.from_preset("2x32", corpus / "lm", settings={"max_length": 256, "max_response_length": 64}).encoder
    encoded = encode_corpus([corpus / "corpus/train.jsonl"], encoder, corpus / "encoded")
    for size in measure_sizes(settings, encoded):
        model = RewardModel.from_preset(
            size.name, corpus / "lm", settings={"max_length": 256, "max_response_length": 64}
        ).backbone
        counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
        assert size.parameters == sum(counts.values()) - counts["score.weight"]
        assert size.non_embedding == size.parameters - counts["model.embed_tokens.weight"]
        rows = [pack([encoded[int(i)] for i in indices]) for indices, _ in zip(batches(60, 7, seed=3), range(9), strict=False)]
        assert sum(row.layout.n_tokens for row in rows) == encoded.stats.tokens  # one epoch
        counted = sum(training_flops(model.config, row.layout) for row in rows)
        assert size.flops_per_token * encoded.stats.tokens == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("tokens", [1, 900, 1000, 4100, 10_000, 16_900, 25_000])
def test_steps_give_the_tokens_to_half_a_batch(tokens):
    """Ten comparisons of 1,000 tokens in batches of 3, 3, 3 and 1."""
    steps, epochs = steps_of(tokens, CorpusSize(10, 10_000), 3)
    after = [sum(([3000, 3000, 3000, 1000] * 9)[:n]) for n in range(30)]
    assert epochs * 10_000 == pytest.approx(after[steps])
    assert abs(after[steps] - tokens) <= 1500 or steps == 1  # half a batch


def test_runs_have_a_fixed_order_and_names_of_their_settings(corpus):
    settings = config(corpus, seeds=[0, 7])
    encoded = CorpusSize(60, 6000)
    sizes = [scaling_size("2x32", 1000), scaling_size("3x64", 4000)]
    unknown = make_grid(settings, sizes, encoded, {})
    assert [run.number for run in unknown] == list(range(6 + 8))
    assert [run.name for run in unknown[:6]] == [
        *("2x32-3000-lr0.005-seed0", "2x32-3000-lr0.01-seed0", "2x32-3000-lr0.02-seed0"),
        *("3x64-3000-lr0.0025-seed0", "3x64-3000-lr0.005-seed0", "3x64-3000-lr0.01-seed0"),
    ]
    assert {run.lr for run in unknown[6:]} == {None}
    known = make_grid(settings, sizes, encoded, {("2x32", "3000"): Picked(0.02, "", True), ("3x64", "3000"): None})
    names = [run.name for run in known]
    assert names[6:8] == ["2x32-3000-lr0.02-seed0", "3x64-3000-lr?-seed0"]  # the first has been trained to tune
    assert names[2] == names[6] and names[10] == "2x32-3000-lr0.02-seed7"
    each = make_grid(config(corpus, learning_rates={"base": 0.01, "tune": "each"}), sizes, encoded, {})
    assert sum(run.purpose == "tune" for run in each) == 12
    assert {run.learning for run in each if run.purpose == "grid"} == {
        (size, budget) for size in ("2x32", "3x64") for budget in ("3000", "6000")
    }


def scaling_size(name, parameters):
    return Size(name, 2 * parameters, parameters, 6.0 * parameters)


def test_splits_are_folders_or_files(corpus, tmp_path):
    settings = config(corpus)
    assert split_path(settings, "seen") == corpus / "corpus/seen.jsonl"
    with pytest.raises(PolarError, match="corpus: no split 'unseen'; it holds other, seen, train"):
        split_path(settings, "unseen")
    moved = config(corpus, corpus=tmp_path)
    (tmp_path / "seen").mkdir()
    assert split_path(moved, "seen") == tmp_path / "seen"
    for name in ("other.jsonl", "other.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(PolarError, match="several files of the split 'other': other.jsonl, other.parquet"):
        split_path(moved, "other")


def test_numbers_of_layers_keep_a_language_models_first_layers(corpus):
    settings = config(corpus, sizes=[1, 2], training={"model": {"init": str(corpus / "lm")}, "batch_size": 8})
    assert list(map(size_name, settings.sizes)) == ["1layers", "2layers"]
    encoded = encode_corpus([corpus / "corpus/train.jsonl"], RewardModel.from_causal_lm(corpus / "lm").encoder, corpus / "whole")
    one, two = measure_sizes(settings, encoded)
    layer = RewardModel.from_causal_lm(corpus / "lm", n_layers=1).backbone.model.layers[0]
    assert two.parameters - one.parameters == sum(torch.numel(parameter) for parameter in layer.parameters())


def test_the_plan_writes_nothing_and_counts_what_is_left(corpus, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(to_yaml(config(corpus)))
    before = sorted(corpus.rglob("*"))
    done = runs.run("scaling", "plan", file, "--flops-per-second", "1e9", "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    assert sorted(corpus.rglob("*")) == before
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert len(plan) == 10 and {each["status"] for each in plan} == {"to do", "waiting"}
    for each in plan:
        assert each["seconds"] == pytest.approx(each["flops"] / 1e9)
        assert each["flops"] == pytest.approx(each["size"]["flops_per_token"] * each["tokens"])
    assert "10 to do" in done.stdout and "parameters without embedding" in done.stdout
    half = runs.run("scaling", "plan", file, "--only", "2/3", "--json", tmp_path / "half.json")
    assert [each["number"] for each in json.loads((tmp_path / "half.json").read_text())] == [1, 4, 7]
    assert "no speed is known yet" in half.stderr
    for only in ("3/2", "0/2", "1", "a/b"):
        wrong = runs.run("scaling", "plan", file, "--only", only)
        refused((wrong.returncode, wrong.stdout, wrong.stderr), f"--only {only}: expected INDEX/COUNT")
