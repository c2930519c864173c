"""A small model calibrated on pairs that its own rewards decide with a known temperature."""

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import runs
from support.commands import in_process
from support.owners import owned_elsewhere

import polar_rm
from polar_rm.calibration import calibrate, calibrate_files
from polar_rm.calibration import run as run_module
from polar_rm.calibration.data import score_pairs
from polar_rm.calibration.report import render, write_plot
from polar_rm.cli.output import plain_console
from polar_rm.errors import NoTemperature, PolarError, ScoreError
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison, ScoreItem, write_records
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.uncertainty import UNCERTAINTY
from polar_rm.scoring.files import score_file
from polar_rm.scoring.scorer import Scorer

TEMPERATURE = 0.7


def texts(rng):
    return " ".join(rng.choice(runs.WORDS) for _ in range(rng.randint(1, 9)))


def ranked(scorer, n=60, seed=0):
    """Comparisons of three candidates, in an order that their rewards decide with the temperature above."""
    rng = random.Random(seed)
    comparisons = []
    for number in range(n):
        prompt, reference, candidates = f"Question {number % (n // 2)}?", texts(rng), [texts(rng) for _ in range(3)]
        rewards = scorer.score_outputs(prompt=prompt, reference=reference, outputs=candidates)
        # Plackett and Luce's order: any two candidates are in the Bradley-Terry model.
        noisy = [reward / TEMPERATURE - math.log(-math.log(rng.random())) for reward in rewards]
        ranks = tuple(sorted(noisy, reverse=True).index(value) for value in noisy)
        comparisons.append(Comparison(prompt, reference, tuple(candidates), ranks))
    return comparisons


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return Scorer(checkpoint[1])


@pytest.fixture(scope="module")
def pairs(scorer):
    return ranked(scorer)


@pytest.fixture(scope="module")
def calibrated(checkpoint, pairs, tmp_path_factory):
    """A copy of the model's folder, the file that it was calibrated on, and the report."""
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(checkpoint[0], folder / "model")
    write_records(folder / "pairs.jsonl", pairs)
    return folder / "model", folder / "pairs.jsonl", calibrate_files(folder / "model", [folder / "pairs.jsonl"])


def test_the_card_is_made_from_separate_scores(calibrated, scorer, pairs):
    folder, file, report = calibrated
    card = Calibration.load(folder)
    raw, anchored, differences = [], [], []
    for comparison in pairs:
        rewards = [
            scorer.score_outputs(prompt=comparison.prompt, reference=comparison.reference, outputs=[text])[0]
            for text in comparison.candidates
        ]
        [own] = scorer.score_outputs(prompt=comparison.prompt, reference=comparison.reference, outputs=[comparison.reference])
        raw += rewards
        anchored += [reward - own for reward in rewards]
        differences += [rewards[better] - rewards[worse] for better, worse in comparison.pairs()]
    assert card.quantiles == pytest.approx(np.quantile(raw, np.linspace(0, 1, 101)), abs=1e-5)
    assert card.anchored.quantiles == pytest.approx(np.quantile(anchored, np.linspace(0, 1, 101)), abs=1e-5)
    assert (card.n, card.anchored.n, card.n_pairs, card.n_prompts) == (180, 180, 180, 30)
    inverse = np.linspace(0.3, 5, 3000)
    losses = np.logaddexp(0, -np.outer(inverse, differences)).mean(1)
    assert 1 / card.temperature == pytest.approx(inverse[losses.argmin()], abs=0.002)
    assert card.temperature == pytest.approx(TEMPERATURE, rel=0.5)
    assert report["accuracy"] == pytest.approx(np.mean(np.array(differences) > 0))
    assert report["data"][0]["rows"] == 60 and report["data"][0]["path"] == str(file)
    assert any("fitted to only 180 pairs of 30 prompts" in line for line in report["warnings"])


def test_deviations_equal_those_of_the_dense_posterior(calibrated, scorer, pairs):
    folder, _, report = calibrated
    scored = score_pairs(scorer, pairs)
    temperature, precision = report["temperature"], report["head"]["prior_precision"]
    hidden = len(scorer.model.head)
    assert report["head"]["hidden"] == hidden
    total = precision * np.eye(hidden)
    for better, worse in zip(scored.features.better, scored.features.worse, strict=True):
        d = scored.features.values[better].astype(float) - scored.features.values[worse]
        p = 1 / (1 + math.exp(-float(scorer.model.head @ d) / temperature))
        total += p * (1 - p) / temperature**2 * np.outer(d, d)
    covariance = np.linalg.inv(total)
    scale = Scale.load(folder)
    item, anchor = ScoreItem("Question 3?", "fox dog", "river"), ScoreItem("Question 3?", "fox dog", "fox dog")
    _, features = scorer.measure_window([item, anchor])
    d = features[0].astype(float) - features[1]
    [reward] = Scorer(scorer.model, scale=scale).score([item], anchored=True)
    assert reward.deviation == pytest.approx(math.sqrt(d @ covariance @ d), rel=1e-3)
    assert scale.uncertainty.prior_precision == pytest.approx(precision)


def test_features_times_head_are_bit_equal_to_the_scores(scorer, pairs):
    items = [ScoreItem(c.prompt, c.reference, text) for c in pairs[:5] for text in c.candidates]
    rewards, features = scorer.measure_window(items)
    assert [reward.reward for reward in rewards] == [reward.reward for reward in scorer.score(items)]
    assert features @ scorer.model.head == pytest.approx([reward.reward for reward in rewards], abs=1e-4)


def test_anchored_rewards_are_differences_of_separate_scores(calibrated):
    """Whatever they are scored with, also where outputs of one prompt have other cuts and trees have to be split."""
    folder = calibrated[0]
    scorer = polar_rm.load(folder, device="cpu")
    items = [ScoreItem("Question 1?", "fox dog", output) for output in ("river", "fox dog", "turtle " * 70)]
    items += [ScoreItem("long " * 300, "slow", "green"), ScoreItem("long " * 300, "slow " * 90, "lazy"), items[0]]
    items.append(ScoreItem("Question 1?", "fox dog", "river", "pretrain"))
    for row_tokens in (8192, 40):
        rewards = list(Scorer(scorer.model, row_tokens=row_tokens, scale=scorer.scale).score(items, anchored=True))
        temperature = Calibration.load(folder).temperature
        for item, reward in zip(items, rewards, strict=True):
            alone, own = (
                next(Scorer(scorer.model).score([ScoreItem(item.prompt, item.reference, text, item.wrapper)])).reward
                for text in (item.output, item.reference)
            )
            assert (reward.reward, reward.anchor) == (pytest.approx(alone, abs=1e-5), pytest.approx(own, abs=1e-5))
            assert reward.anchored == pytest.approx(alone - own, abs=2e-5)
            assert reward.probability == pytest.approx(1 / (1 + math.exp(-(alone - own) / temperature)), abs=1e-4)
        assert (rewards[1].anchored, rewards[1].probability, rewards[1].deviation) == (0.0, 0.5, 0.0)
        assert rewards[0].deviation > 0 and replace(rewards[5], deviation=rewards[0].deviation) == rewards[0]
        assert rewards[5].deviation == pytest.approx(rewards[0].deviation, rel=1e-5)
    assert scorer.noted == {}


def test_rewards_have_the_notes_of_their_items_and_not_of_their_anchors(calibrated):
    scorer = polar_rm.load(calibrated[0], device="cpu")
    list(scorer.score([ScoreItem("Question 1?", "fox", "dog " * 90)] * 2, anchored=True))
    assert scorer.noted == {"truncated": 2}


def test_an_empty_reference_has_no_anchor(calibrated):
    scorer = polar_rm.load(calibrated[0], device="cpu")
    scorer.window = 2
    items = [ScoreItem("q", "r", "a"), ScoreItem("q", "r", "b"), ScoreItem("q", " ", "c")]
    assert len(list(scorer.score(items))) == 3
    with pytest.raises(PolarError, match="item 3: the reference is empty"):
        list(scorer.score(items, anchored=True))


def test_a_card_of_another_model_is_refused_when_it_is_needed(calibrated, checkpoint, tmp_path):
    """F11."""
    shutil.copytree(checkpoint[0], tmp_path / "model")
    model = RewardModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.backbone.score.weight.mul_(2)
    model.save(tmp_path / "other")
    for name in ("calibration.json", UNCERTAINTY):
        other = tmp_path / "other" / name
        other.parent.mkdir(exist_ok=True)
        shutil.copy(calibrated[0] / name, other)
        with pytest.raises(PolarError, match=r"belongs to another model \(different weights\); make one with this model: polar"):
            Scale.load(tmp_path / "other")
        scorer = polar_rm.load(tmp_path / "other", device="cpu")
        item = ScoreItem("q", "r", "a")
        assert list(scorer.score([item]))
        with pytest.raises(PolarError, match="belongs to another model"):
            list(scorer.score([item], anchored=True))
        other.unlink()


def test_files_are_scored_with_transforms(calibrated, pairs, tmp_path):
    folder = calibrated[0]
    scale, model = Scale.load(folder), RewardModel.from_pretrained(folder)
    items = [ScoreItem(c.prompt, c.reference, text) for c in pairs[:4] for text in c.candidates]
    write_records(tmp_path / "items.jsonl", items)
    rows = {}
    for name in ("raw", "anchored", "probability", "percentile", "tanh"):
        target = tmp_path / f"{name}.jsonl"
        assert list(score_file(model, tmp_path / "items.jsonl", target, identity={}, transform=name, scale=scale))[-1] == 12
        rows[name] = [json.loads(line) for line in target.read_text().splitlines()]
    expected = list(Scorer(model, scale=scale).score(items, anchored=True))
    assert all(row.keys() == {"row", "reward", "n_tokens", "truncated", "notes", "metadata"} for row in rows["raw"])
    for name in rows.keys() - {"raw"}:
        assert [row["reward"] for row in rows[name]] == [row["reward"] for row in rows["raw"]]
    for name, field in (("anchored", "anchored"), ("probability", "probability")):
        for row, reward in zip(rows[name], expected, strict=True):
            assert row["score"] == getattr(reward, field)
            assert (row["anchor"], row["probability"], row["deviation"]) == (reward.anchor, reward.probability, reward.deviation)
    assert [row["score"] for row in rows["tanh"]] == [math.tanh(reward.reward / 10) for reward in expected]
    assert [row["score"] for row in rows["percentile"]] == [scale.calibration.percentile(reward.reward) for reward in expected]
    assert "anchor" not in rows["tanh"][0]

    bare = Scale()
    for name, reason in (("probability", "needs a calibration card"), ("whiten", "needs all rewards"), ("x", "unknown")):
        with pytest.raises(PolarError, match=reason):
            next(score_file(model, tmp_path / "items.jsonl", tmp_path / "x.jsonl", identity={}, transform=name, scale=bare))
    write_records(tmp_path / "empty.jsonl", [*items[:2], ScoreItem("q", "", "a")])
    with pytest.raises(
        PolarError,
        match="empty.jsonl: row 3: field 'reference': expected a text, because the transform anchored needs its own score",
    ):
        list(score_file(model, tmp_path / "empty.jsonl", tmp_path / "y.jsonl", identity={}, transform="anchored"))


def test_comparisons_with_empty_references_have_no_anchored_rewards(scorer, pairs):
    empty = [Comparison(c.prompt, "", c.candidates, c.ranks) for c in pairs]
    some = calibrate(scorer, [*empty[:30], *pairs[30:]])
    assert (some.scale.calibration.n, some.scale.calibration.anchored.n) == (180, 90)
    raw = scorer.score_outputs(prompt=pairs[0].prompt, reference="", outputs=list(pairs[0].candidates))
    scored = score_pairs(scorer, empty[:1])
    assert scored.raw.tolist() == pytest.approx(raw) and len(scored.anchored) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nothing", "there are no comparisons"),
        ("ties", "none of 60 comparisons has two candidates of different rank"),
        ("one prompt", "all pairs belong to one prompt"),
        ("missing", "2 of 60 comparisons have no reference, the first is comparison 4"),
        ("generator", "read twice"),
    ],
)
def test_pairs_that_can_not_calibrate_are_refused_before_anything_is_scored(pairs, change, reason):
    changed = {
        "nothing": [],
        "ties": [Comparison(c.prompt, c.reference, c.candidates, (0, 0, 0)) for c in pairs],
        "one prompt": [Comparison("p", c.reference, c.candidates, c.ranks) for c in pairs],
        "missing": [Comparison(c.prompt, None, c.candidates, c.ranks) if i in (3, 9) else c for i, c in enumerate(pairs)],
        "generator": iter(pairs),
    }[change]
    with pytest.raises(PolarError, match=reason):
        calibrate(None, changed)


def test_rewards_without_a_temperature_are_refused(scorer, pairs):
    turned = [Comparison(c.prompt, c.reference, c.candidates, tuple(2 - rank for rank in c.ranks)) for c in pairs]
    with pytest.raises(NoTemperature, match="no higher rewards"):
        calibrate(scorer, turned)
    equal = [Comparison(c.prompt, c.reference, ("fox<|im_end|>", "fox"), (0, 1)) for c in pairs]
    with pytest.raises(NoTemperature, match="equal rewards"):
        calibrate(scorer, equal)


def test_a_score_that_is_not_finite_is_named(scorer, pairs, monkeypatch):
    score, bad = Scorer.measure_window, []

    def broken(self, items):
        rewards, features = score(self, items)
        index = bad[0](items)
        rewards[index] = type(rewards[0])(math.nan, 1)
        return rewards, features

    monkeypatch.setattr(Scorer, "measure_window", broken)
    for pick, name in (
        (lambda items: 4, "comparison 2 has the score nan"),
        (lambda items: 12 + 1, "the reference of comparison 2 as a candidate has"),
    ):
        bad[:] = [pick]
        with pytest.raises(ScoreError, match=name):
            score_pairs(scorer, pairs[:4])


def test_an_interrupted_calibration_changes_nothing(calibrated, monkeypatch, tmp_path):
    folder, file, _ = calibrated
    shutil.copytree(folder, tmp_path / "model")

    def content():
        return {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}

    before = content()
    monkeypatch.setattr(run_module, "fit", lambda *a, **o: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        calibrate_files(tmp_path / "model", [file])
    assert content() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_model_that_changes_during_its_calibration_gets_no_card(calibrated, monkeypatch, tmp_path):
    folder, file, _ = calibrated
    shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("calibration*"))
    fit = run_module.fit

    def meanwhile(*arguments, **options):
        with (tmp_path / "model/model.safetensors").open("r+b") as weights:
            weights.seek(-4, 2)
            weights.write(b"\x00\x00\x00\x3f")
        return fit(*arguments, **options)

    monkeypatch.setattr(run_module, "fit", meanwhile)
    with pytest.raises(PolarError, match="model: the model was changed while it was calibrated"):
        calibrate_files(tmp_path / "model", [file])
    assert not (tmp_path / "model/calibration.json").exists()


def test_a_folder_in_use_is_refused(calibrated):
    """F1."""
    folder, file, _ = calibrated
    with owned_elsewhere(folder, "finetune"), pytest.raises(PolarError, match="model: in use by polar finetune on"):
        calibrate_files(folder, [file])


def test_files_of_a_folder_that_are_left_out_are_a_warning(calibrated, tmp_path):
    """As in an evaluation and an audit: all three read their files in one way."""
    shutil.copytree(calibrated[0], tmp_path / "model")
    (tmp_path / "data/.hidden").mkdir(parents=True)
    for folder in ("data", "data/.hidden"):
        shutil.copy(calibrated[1], tmp_path / folder)
    report = calibrate_files(tmp_path / "model", [tmp_path / "data"])
    assert any("left out: 1 hidden folders" in warning for warning in report["warnings"])


def test_a_limit_is_as_a_shorter_file_and_is_told(calibrated, tmp_path):
    shutil.copytree(calibrated[0], tmp_path / "model")
    (tmp_path / "short.jsonl").write_text("".join(calibrated[1].read_text().splitlines(keepends=True)[:25]))
    shorter = calibrate_files(tmp_path / "model", [tmp_path / "short.jsonl"])
    (tmp_path / "model/calibration.json").unlink()
    code, _, error = in_process(
        "calibrate", tmp_path / "model", calibrated[1], "--limit", 25, "--json", tmp_path / "limited.json"
    )
    assert code == 0, error
    assert not (tmp_path / "model/calibration.json").exists()  # a trial must not replace what serve and score use
    limited = json.loads((tmp_path / "limited.json").read_text())
    told = "a trial with at most the first 25 comparisons: the model keeps the scale that it had"
    assert (shorter["limit"], limited["limit"]) == (None, 25) and told in limited["warnings"]
    for key in ("n_pairs", "n_prompts", "temperature", "accuracy", "abstention", "rewards"):
        assert limited[key] == shorter[key]
    assert limited["n_pairs"] < calibrated[2]["n_pairs"] and told not in " ".join(shorter["warnings"])


@pytest.mark.plots
def test_table_and_plot_show_the_results(calibrated, tmp_path, capsys):
    report = calibrated[2]
    plain_console().print(render(report))
    shown = capsys.readouterr().out
    assert f"sigmoid((r_a - r_b) / {report['temperature']:.4g})" in shown
    assert "180 pairs of 30 prompts: accuracy" in shown and "80%" in shown and "anchored rewards: median" in shown
    write_plot(tmp_path / "plot.svg", report)
    drawn = Path(tmp_path / "plot.svg").read_text()
    assert f"after (error {report['after']['error']:.3f})" in drawn and "most certain pairs" in drawn
