"""int8: its products against float64, its record, and where it is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from support import tiny

from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.base import ModelOptions
from polar_rm.model import int8
from polar_rm.model.devices import dtype_name
from polar_rm.model.int8 import RECORD, Int8, Int8Record, Int8Weight
from polar_rm.model.products import Product, in_float32
from polar_rm.model.reward_model import RewardModel
from polar_rm.quantization import run
from polar_rm.quantization.run import measure, quantize_model
from polar_rm.records import Comparison, ScoreItem, write_records
from polar_rm.scoring.scorer import Scorer

OUTPUTS = ["a fox", "a slow green turtle", "the river", "Beijing " * 30]
COMPARISONS = [
    Comparison(prompt, "the brown fox", tuple(OUTPUTS[first:] + OUTPUTS[:first]), (0, 1, 2, 3))
    for first, prompt in enumerate(("What?", "Who jumps?", "Where?"))
]


@pytest.fixture(autouse=True)
def _on_any_processor(monkeypatch):
    monkeypatch.setattr(int8, "has_int8", lambda: True)


@pytest.fixture
def saved(tmp_path):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "model")
    write_records(tmp_path / "pairs.jsonl", COMPARISONS)
    return tmp_path / "model"


def score(model):
    return Scorer(model).score_outputs(prompt="What?", reference="a fox", outputs=OUTPUTS)


def test_int8_is_within_half_a_step_of_every_row():
    rows = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    rows[7] = 0
    quantized = Int8(rows)
    assert quantized.values.abs().max() == 127
    assert ((quantized.values * quantized.scales - rows).abs() <= 0.5001 * quantized.scales).all()


@pytest.mark.parametrize("bias", [None, torch.arange(24.0)])
def test_a_product_is_that_of_the_rounded_numbers_in_float64(bias):
    torch.manual_seed(0)
    rows, weight = torch.randn(48, 64), torch.randn(24, 64)
    rows[:, 3] *= 40  # an outlier in every token
    a, b = Int8(rows), Int8(weight)
    exact = (a.values.double() * a.scales) @ (b.values.double() * b.scales).T + (0 if bias is None else bias)
    product = Int8Weight(weight).multiply(rows, bias)
    torch.testing.assert_close(product.double(), exact, rtol=1e-5, atol=1e-4)
    assert torch.equal(Int8Weight(weight).multiply(rows[16:32], bias), product[16:32])


def test_what_is_not_finite_stays_so():
    """Or a broken activation would become a finite reward."""
    rows = torch.randn(16, 64)
    rows[5, 0], rows[6, 1] = math.nan, -math.inf
    finite = Int8Weight(torch.randn(24, 64)).multiply(rows, None).isfinite()
    assert not finite[5:7].any()
    assert finite[:5].all() and finite[7:].all()


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_a_measured_model_scores_in_int8_and_the_same_bits_alone(tmp_path, family):
    tiny.reward_model(tmp_path / "lm", family).save(tmp_path / "model")
    write_records(tmp_path / "pairs.jsonl", COMPARISONS)
    record = quantize_model(tmp_path / "model", [tmp_path / "pairs.jsonl"], minimum=0.9)
    assert 0.9 < record.spearman < 1 or record.flipped == 0
    assert (record.n_pairs, record.n_comparisons, record.data) == (18, 3, ("pairs.jsonl",))
    assert record.offset is not None and abs(record.offset) < 0.6

    full, model = RewardModel.from_pretrained(tmp_path / "model"), RewardModel.from_pretrained(tmp_path / "model", dtype="int8")
    products = {name: module.forward.int8 for name, module in model.named_modules() if isinstance(module.forward, Product)}
    assert {name.rsplit(".")[-1] for name, weight in products.items() if not weight} == {"down_proj"}
    scores = score(model)
    assert scores == pytest.approx(score(full), abs=0.6)  # of a range of 4 to 10: small random models round badly
    assert scores != score(full)
    scorer = Scorer(model)
    assert scores == [scorer.score_outputs(prompt="What?", reference="a fox", outputs=[output])[0] for output in OUTPUTS]
    with torch.backends.mkldnn.flags(enabled=False):
        assert score(model) != score(full)
    with in_float32(model):
        assert score(model) == score(full)
    assert score(model) == scores


def test_the_agreement_is_that_of_the_rewards(saved, monkeypatch):
    """With int8 replaced by a known change of the rewards."""
    model = RewardModel.from_pretrained(saved)
    scorer, plain = Scorer(model), {}
    exact = {output: reward for c in COMPARISONS for output, reward in zip(c.candidates, score(model), strict=True)}
    assert len(set(exact.values())) == 4
    inside = []

    class Flag:
        def __init__(self, module):
            pass

        def __enter__(self):
            inside.append(True)

        def __exit__(self, *error):
            inside.pop()

    monkeypatch.setattr(run, "in_float32", Flag)
    values = {"a fox": 0.0, OUTPUTS[1]: 1.0, OUTPUTS[2]: 2.0, OUTPUTS[3]: 4.0}
    swapped = values | {"a fox": 1.5, OUTPUTS[1]: 1.0}  # one of six pairs is flipped

    def fake(items, *, anchored):
        for item in items:
            reward = (values if inside else swapped)[item.output]
            yield replace(next(iter(plain)), reward=reward, anchor=0.25 if inside else 0.5)

    plain = list(scorer.score([ScoreItem("p", "r", "o")]))
    monkeypatch.setattr(scorer, "score", fake)
    record = measure(scorer, COMPARISONS, ())
    assert record.flipped == pytest.approx(1 / 6)
    assert record.offset == pytest.approx(1.5 / 4 - 0.25)
    assert record.spearman < 1


def test_below_the_minimum_nothing_is_written(saved):
    with pytest.raises(PolarError, match=r"correlate with those in float32 by .*; below 1.1 int8 is refused"):
        quantize_model(saved, [saved.parent / "pairs.jsonl"], minimum=1.1)
    assert not (saved / RECORD).exists()
    quantize_model(saved, [saved.parent / "pairs.jsonl"], minimum=1.1, force=True)
    assert Int8Record.load(saved).n_pairs == 18


def test_what_is_not_measured_or_another_models_is_refused(saved):
    with pytest.raises(PolarError, match=r"not measured yet; first: polar quantize"):
        RewardModel.from_pretrained(saved, dtype="int8")
    quantize_model(saved, [saved.parent / "pairs.jsonl"], minimum=0)
    values = json.loads((saved / RECORD).read_text())
    for wrong in ({}, values | {"schema": "x"}, values | {"spearman": "high"}, values | {"data": 3}):
        (saved / RECORD).write_text(json.dumps(wrong))
        with pytest.raises(PolarError, match=r"int8.json: not a record of polar quantize"):
            RewardModel.from_pretrained(saved, dtype="int8")
    (saved / RECORD).write_text(json.dumps(values | {"weights": "0123"}))
    with pytest.raises(PolarError, match=r"belongs to another model \(different weights\).*polar quantize"):
        RewardModel.from_pretrained(saved, dtype="int8")


def test_it_is_refused_where_it_can_not_be_used(saved, monkeypatch):
    with pytest.raises(PolarError, match="int8 is for CPUs; on device cuda use bf16"):
        dtype_name("int8", "cuda")
    with pytest.raises(PolarError, match="int8 is for models saved by polar"):
        ModelOptions("int8", "cpu").placement()
    assert ModelOptions("int8", "cpu").placement(own=True) == {"dtype": "int8", "device": "cpu"}
    with pytest.raises(PolarError, match="int8 is for saved reward models"):
        RewardModel.from_causal_lm(saved.parent / "lm", dtype="int8")
    monkeypatch.setattr(int8, "has_int8", lambda: False)
    with pytest.raises(PolarError, match="no instructions for it"):
        RewardModel.from_pretrained(saved, dtype="int8")
    with pytest.raises(PolarError, match="no instructions for it"):
        quantize_model(saved, [saved.parent / "pairs.jsonl"])


def test_comparisons_without_pairs_and_models_without_differences_measure_nothing(saved):
    scorer = Scorer(RewardModel.from_pretrained(saved))
    with pytest.raises(PolarError, match="1 comparisons have fewer than two pairs"):
        measure(scorer, [Comparison("p", "r", ("a", "b"), (0, 1))], ())
    torch.nn.init.zeros_(scorer.model.backbone.score.weight)
    with pytest.raises(PolarError, match="was this model ever trained"):
        measure(scorer, COMPARISONS, ())
    assert math.isfinite(measure(Scorer(RewardModel.from_pretrained(saved)), COMPARISONS[:1], ()).spearman)
