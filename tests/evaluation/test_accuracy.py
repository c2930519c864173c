import hashlib
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation.accuracy import evaluate, score_pairs
from polar_rm.evaluation.baselines import make_baselines
from polar_rm.records import Comparison

KEYS = {
    "schema",
    "n_pairs",
    "n_prompts",
    "accuracy",
    "ci95",
    "loss",
    "by",
    "baselines",
    "encoder_hash",
    "model",
    "data",
}


class FakeScorer:
    """Scores by a function of a candidate's text, in windows as a model would."""

    def __init__(self, score, window=5):
        self.score, self.window, self.calls = score, window, 0

    def score_comparisons(self, comparisons):
        held = []
        for comparison in comparisons:
            self.calls += 1
            held.append([self.score(candidate) for candidate in comparison.candidates])
            if len(held) == self.window:
                yield from held
                held = []
        yield from held


def noisy(text):
    """A pseudo-random score on a grid of five values, so that ties happen."""
    return hashlib.sha256(text.encode()).digest()[0] % 5 / 2


def corpus(n=60, seed=0):
    generator = random.Random(seed)
    items = []
    for i in range(n):
        k = generator.randint(2, 5)
        candidates = tuple(f"candidate {generator.random()} " * generator.randint(1, 4) for _ in range(k))
        ranks = (0, *(generator.randint(0, 2) for _ in range(k - 2)), 1)
        metadata = {"prompt_id": f"p{i // 2}", "subset": f"s{i % 3}"}
        items.append(Comparison(f"prompt {i // 2}", f"reference {generator.random()}", candidates, ranks, "sft", metadata))
    return items


def brute_force(items, score):
    """(accuracy, loss, pairs) in the most literal way."""
    right, losses = [], []
    for item in items:
        for better, better_rank in zip(item.candidates, item.ranks, strict=True):
            for worse, worse_rank in zip(item.candidates, item.ranks, strict=True):
                if better_rank < worse_rank:
                    a, b = score(better), score(worse)
                    right.append(1.0 if a > b else 0.5 if a == b else 0.0)
                    losses.append(-math.log(1 / (1 + math.exp(-(a - b)))))
    return sum(right) / len(right), sum(losses) / len(losses), len(right)


def test_accuracy_and_loss_equal_brute_force():
    items = corpus()
    result = evaluate(FakeScorer(noisy), items, by="subset", model="m", encoder_hash="e")
    report = result.report
    accuracy, loss, n_pairs = brute_force(items, noisy)
    assert report["accuracy"] == pytest.approx(accuracy)
    assert report["loss"] == pytest.approx(loss)
    assert (report["n_pairs"], report["n_prompts"]) == (n_pairs, 30)
    assert report["ci95"][0] < accuracy < report["ci95"][1]
    assert set(report) == KEYS | {"reference", "warnings"}
    assert (report["schema"], report["model"], report["encoder_hash"]) == ("polar-rm/evaluation/1", "m", "e")
    for name, group in report["by"].items():
        accuracy, loss, n_pairs = brute_force([item for item in items if item.metadata["subset"] == name], noisy)
        assert (group["accuracy"], group["loss"], group["n_pairs"]) == (
            pytest.approx(accuracy),
            pytest.approx(loss),
            n_pairs,
        )


def test_groups_sum_to_the_total():
    report = evaluate(FakeScorer(noisy), corpus(), by="subset").report
    groups = report["by"].values()
    assert list(report["by"]) == ["s0", "s1", "s2"]
    assert sum(group["n_pairs"] for group in groups) == report["n_pairs"]
    for key in ("accuracy", "loss"):
        assert sum(group[key] * group["n_pairs"] for group in groups) / report["n_pairs"] == pytest.approx(report[key])
    for name in ("length", "tfidf"):
        mean = sum(group["baselines"][name]["accuracy"] * group["n_pairs"] for group in groups) / report["n_pairs"]
        assert mean == pytest.approx(report["baselines"][name]["accuracy"])


def test_swapping_better_and_worse_gives_one_minus_accuracy():
    items = corpus()
    swapped = [replace(item, ranks=tuple(-rank for rank in item.ranks)) for item in items]
    first, second = evaluate(FakeScorer(noisy), items).report, evaluate(FakeScorer(noisy), swapped).report
    assert first["accuracy"] + second["accuracy"] == pytest.approx(1)
    for name in first["baselines"]:
        assert first["baselines"][name]["accuracy"] + second["baselines"][name]["accuracy"] == pytest.approx(1)


def test_a_baseline_as_the_model_equals_itself():
    items = corpus()
    length = make_baselines(["length"])["length"]
    report = evaluate(length, items).report
    assert report["baselines"]["length"]["accuracy"] == report["accuracy"]
    assert report["baselines"]["length"]["ci95"] == report["ci95"]
    assert report["baselines"]["length"]["difference_ci95"] == [0.0, 0.0]


def test_constant_scores_are_ties():
    report = evaluate(FakeScorer(lambda text: 3.0), corpus()).report
    assert report["accuracy"] == 0.5
    assert report["loss"] == pytest.approx(math.log(2))


def test_huge_differences_have_a_finite_loss():
    item = Comparison("p", "r", ("a", "b"), (0, 1))
    assert evaluate(FakeScorer({"a": -1e4, "b": 1e4}.get), [item]).report["loss"] == 2e4


def test_prompts_without_id_are_told_apart_by_text():
    items = [replace(item, metadata={}) for item in corpus()]
    with_ids, without = evaluate(FakeScorer(noisy), corpus()).report, evaluate(FakeScorer(noisy), items).report
    assert (with_ids["n_prompts"], with_ids["ci95"]) == (without["n_prompts"], without["ci95"])


def test_one_prompt_is_reported_honestly():
    report = evaluate(FakeScorer(noisy), corpus(2), by="subset").report
    assert report["n_prompts"] == 1
    assert report["ci95"] is None and report["baselines"]["tfidf"]["difference_ci95"] is None
    assert report["by"]["s0"]["ci95"] is None
    assert report["warnings"] == ["all pairs belong to one prompt: there is no interval"]


def test_non_finite_scores_are_never_counted():
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ScoreError, match="model: comparison 7 has the scores"):
            items = corpus()
            evaluate(FakeScorer(lambda text, bad=bad, items=items: bad if text == items[6].candidates[1] else 0.0), items)


def test_a_scorer_must_answer_for_every_candidate():
    class Short:
        def score_comparisons(self, comparisons):
            yield from ([0.0] * len(item.candidates) for item in list(comparisons)[:-1])

    class Few:
        def score_comparisons(self, comparisons):
            yield from ([0.0] for _ in comparisons)

    items = corpus(4)
    with pytest.raises(ScoreError, match=r"comparison 4 has . candidates but got 0 scores"):
        evaluate(Short(), items)
    with pytest.raises(ScoreError, match=r"comparison 1 has . candidates but got 1 scores"):
        evaluate(Few(), items)


def test_bad_input_is_refused_before_the_model_runs():
    scorer = FakeScorer(noisy)
    missing = [*corpus(), Comparison("p", None, ("a", "b"), (0, 1))]
    for items, options, message in (
        (missing, {}, "1 of 61 comparisons have no reference, the first is comparison 61"),
        (corpus(), {"by": "subst"}, "did you mean 'subset'"),
        (corpus(), {"baselines": ["rouge"]}, "unknown baseline 'rouge'"),
        (corpus(), {"reference": "frontier"}, "unknown reference mode 'frontier'"),
        ([], {}, "no comparisons"),
        (iter(corpus()), {}, "read twice"),
    ):
        with pytest.raises(PolarError, match=message):
            evaluate(scorer, items, **options)
    assert scorer.calls == 0
    assert evaluate(scorer, missing, reference="empty").report["reference"]["mode"] == "empty"


def test_copies_of_the_reference_are_reported_and_counted():
    items = corpus(40)
    items[3] = replace(items[3], reference=items[3].candidates[0].upper())
    report = evaluate(FakeScorer(noisy), items).report
    assert report["reference"]["reference_equals_candidate"] == 1
    assert any("equal, or nearly" in line for line in report["warnings"])
    assert report["n_pairs"] == evaluate(FakeScorer(noisy), corpus(40)).report["n_pairs"]


def test_missing_group_values_are_a_group_and_a_warning():
    items = corpus()
    items[0] = replace(items[0], metadata={"prompt_id": "p0"})
    report = evaluate(FakeScorer(noisy), items, by="subset").report
    assert "(none)" in report["by"]
    assert report["warnings"] == [
        "1 comparisons have no 'subset': they are in the group (none)",
        "4 of 4 groups have fewer than 30 prompts: their intervals are too narrow, or missing",
    ]


def test_difference_of_two_models_on_the_same_pairs():
    items = corpus()
    first = evaluate(FakeScorer(noisy), items)
    second = evaluate(FakeScorer(lambda text: noisy(text + "!")), items, reference="empty", baselines=())
    difference = first.minus(second)
    assert difference.difference == pytest.approx(first.report["accuracy"] - second.report["accuracy"])
    assert difference.ci95[0] < difference.difference < difference.ci95[1]
    assert first.minus(first).ci95 == (0.0, 0.0)
    with pytest.raises(PolarError, match="same comparisons in the same order"):
        first.minus(evaluate(FakeScorer(noisy), items[::-1]))


def test_only_a_window_of_comparisons_is_held():
    alive, peak, drawn = 0, 0, 0

    class Counted(Comparison):
        __slots__ = ("__weakref__",)

        def __del__(self):
            nonlocal alive
            alive -= 1

    def stream():
        nonlocal alive, peak, drawn
        for item in corpus(400):
            alive, drawn = alive + 1, drawn + 1
            peak = max(peak, alive)
            yield Counted(item.prompt, item.reference, item.candidates, item.ranks, item.wrapper, item.metadata)

    pairs = score_pairs({"model": FakeScorer(noisy, window=20), "length": make_baselines(["length"])["length"]}, stream())
    assert drawn == 400 and peak <= 100
    assert all(len(values) == len(pairs.prompts) for values in pairs.differences.values())


def test_progress_and_seed():
    seen = []
    items = corpus(6)
    first = evaluate(FakeScorer(noisy), items, progress=lambda task, done, total, status="": seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]
    assert first.report == evaluate(FakeScorer(noisy), items).report
    more = corpus(60)
    assert evaluate(FakeScorer(noisy), more).report["ci95"] != evaluate(FakeScorer(noisy), more, seed=1).report["ci95"]
    assert np.array_equal(first.pairs.prompts, np.sort(first.pairs.prompts))
