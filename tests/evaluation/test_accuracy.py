import hashlib
import math
import random
import weakref
from dataclasses import replace

import numpy as np
import pytest

from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation.accuracy import evaluate
from polar_rm.evaluation.contenders import Given
from polar_rm.evaluation.contenders.baselines import make_baselines
from polar_rm.evaluation.pairs import NotedScores, score_pairs
from polar_rm.records import Comparison

KEYS = set("schema n_pairs n_prompts contenders differences by facts data limit reference fingerprint warnings".split())


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


def run(scorer, items, **options):
    """The report on one scorer, named model, and the baselines."""
    return evaluate({"model": scorer}, items, **options).report


def test_accuracy_and_loss_equal_brute_force():
    items = corpus()
    report = run(FakeScorer(noisy), items, by="subset")
    accuracy, loss, n_pairs = brute_force(items, noisy)
    numbers = report["contenders"]["model"]
    assert numbers["accuracy"] == pytest.approx(accuracy)
    assert numbers["loss"] == pytest.approx(loss)
    assert (report["n_pairs"], report["n_prompts"]) == (n_pairs, 30)
    assert numbers["ci95"][0] < accuracy < numbers["ci95"][1]
    assert set(report) == KEYS
    assert (report["schema"], list(report["contenders"])) == ("polar-rm/evaluation/2", ["model", "length", "tfidf"])
    assert {name: each["kind"] for name, each in report["facts"].items()} == {
        "model": "object",
        "length": "baseline",
        "tfidf": "baseline",
    }
    assert report["contenders"]["length"]["loss"] is None  # its scale is arbitrary
    for name, group in report["by"].items():
        accuracy, loss, n_pairs = brute_force([item for item in items if item.metadata["subset"] == name], noisy)
        numbers = group["contenders"]["model"]
        assert (numbers["accuracy"], numbers["loss"]) == (pytest.approx(accuracy), pytest.approx(loss))
        assert group["n_pairs"] == n_pairs


def test_ties_are_counted_and_shown():
    items = corpus()
    ties = sum(
        noisy(better) == noisy(worse)
        for item in items
        for better, rank in zip(item.candidates, item.ranks, strict=True)
        for worse, other in zip(item.candidates, item.ranks, strict=True)
        if rank < other
    )
    assert ties > 5
    assert run(FakeScorer(noisy), items)["contenders"]["model"]["ties"] == ties


def test_groups_sum_to_the_total():
    report = run(FakeScorer(noisy), corpus(), by="subset")
    groups = report["by"].values()
    assert list(report["by"]) == ["s0", "s1", "s2"]
    assert sum(group["n_pairs"] for group in groups) == report["n_pairs"]
    for name, whole in report["contenders"].items():
        for key in ("accuracy", "loss", "ties"):
            if whole[key] is not None:
                weights = [1 if key == "ties" else group["n_pairs"] / report["n_pairs"] for group in groups]
                parts = [group["contenders"][name][key] for group in groups]
                assert sum(w * part for w, part in zip(weights, parts, strict=True)) == pytest.approx(whole[key])


def test_swapping_better_and_worse_gives_one_minus_accuracy():
    items = corpus()
    swapped = [replace(item, ranks=tuple(-rank for rank in item.ranks)) for item in items]
    first, second = run(FakeScorer(noisy), items)["contenders"], run(FakeScorer(noisy), swapped)["contenders"]
    for name in ("model", "length", "tfidf"):
        assert first[name]["accuracy"] + second[name]["accuracy"] == pytest.approx(1)


def test_equal_contenders_are_undecided_with_the_interval_of_agreeing_prompts():
    items = corpus()
    report = run(make_baselines(["length"])["length"], items)
    assert report["contenders"]["model"] == {**report["contenders"]["length"], "loss": report["contenders"]["model"]["loss"]}
    [difference] = [each for each in report["differences"] if (each["first"], each["second"]) == ("model", "length")]
    # None of 30 prompts has a difference. A share z^2 / (30 + z^2) of all prompts may have one, of at most 1.
    unseen = 1.959963984540054**2 / (30 + 1.959963984540054**2)
    assert (difference["difference"], difference["verdict"]) == (0.0, "undecided")
    assert difference["ci95"] == pytest.approx([-unseen, unseen])


def test_intervals_of_six_right_of_six_and_of_none_are_wilson_intervals():
    items = [Comparison(f"p{i}", "r", ("good", "bad"), (0, 1)) for i in range(6)]
    for score, expected in (({"good": 1.0, "bad": 0.0}.get, [0.6096, 1.0]), ({"good": 0.0, "bad": 1.0}.get, [0.0, 0.3903])):
        # Wilson (1927) by hand: n / (n + z^2) = 6 / (6 + 3.8415).
        assert run(FakeScorer(score), items)["contenders"]["model"]["ci95"] == pytest.approx(expected, abs=1e-4)


def test_differences_name_the_better_contender():
    items = corpus(200)
    right = {item.candidates[item.ranks.index(0)] for item in items}
    good = FakeScorer(lambda text: float(text in right))
    report = evaluate({"bad": FakeScorer(noisy), "good": good, "good too": good}, items, baselines=()).report
    verdicts = {(each["first"], each["second"]): each["verdict"] for each in report["differences"]}
    assert verdicts == {("bad", "good"): "second", ("bad", "good too"): "second", ("good", "good too"): "undecided"}
    [first, *_] = report["differences"]
    accuracies = {name: numbers["accuracy"] for name, numbers in report["contenders"].items()}
    assert first["difference"] == pytest.approx(accuracies["bad"] - accuracies["good"])
    assert first["ci95"][0] < first["difference"] < first["ci95"][1] < 0
    result = evaluate({"bad": FakeScorer(noisy), "good": good}, items, baselines=())
    paired = result.difference("bad", "good")
    assert list(paired.ci95) == pytest.approx(result.report["differences"][0]["ci95"])
    with pytest.raises(PolarError, match="no contender 'best'; there is bad, good"):
        result.difference("bad", "best")


def test_constant_scores_are_ties():
    report = run(FakeScorer(lambda text: 3.0), corpus())
    assert report["contenders"]["model"]["accuracy"] == 0.5
    assert report["contenders"]["model"]["loss"] == pytest.approx(math.log(2))
    assert report["contenders"]["model"]["ties"] == report["n_pairs"]


def test_huge_differences_have_a_finite_loss():
    item = Comparison("p", "r", ("a", "b"), (0, 1))
    assert run(FakeScorer({"a": -1e4, "b": 1e4}.get), [item])["contenders"]["model"]["loss"] == 2e4


def test_prompts_without_id_are_distinguished_by_text():
    items = [replace(item, metadata={}) for item in corpus()]
    with_ids, without = run(FakeScorer(noisy), corpus()), run(FakeScorer(noisy), items)
    assert (with_ids["n_prompts"], with_ids["contenders"]) == (without["n_prompts"], without["contenders"])


def test_one_prompt_has_no_interval_and_a_warning():
    report = run(FakeScorer(noisy), corpus(2), by="subset")
    assert report["n_prompts"] == 1
    assert {numbers["ci95"] for numbers in report["contenders"].values()} == {None}
    assert {(each["ci95"], each["verdict"]) for each in report["differences"]} == {(None, "undecided")}
    assert report["by"]["s0"]["contenders"]["model"]["ci95"] is None
    assert report["warnings"] == ["all pairs belong to one prompt: there is no interval"]


def test_non_finite_scores_are_never_counted():
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ScoreError, match="model: comparison 7 has the scores"):
            items = corpus()
            run(FakeScorer(lambda text, bad=bad, items=items: bad if text == items[6].candidates[1] else 0.0), items)


def test_a_scorer_must_score_every_candidate():
    class Short:
        def score_comparisons(self, comparisons):
            yield from ([0.0] * len(item.candidates) for item in list(comparisons)[:-1])

    class Few:
        def score_comparisons(self, comparisons):
            yield from ([0.0] for _ in comparisons)

    class Many:
        def score_comparisons(self, comparisons):
            yield from ([0.0] * len(item.candidates) for item in comparisons)
            yield [0.0, 0.0]

    items = corpus(4)
    fine = FakeScorer(noisy)
    with pytest.raises(ScoreError, match=r"short: comparison 4 has . candidates but got 0 scores"):
        evaluate({"fine": fine, "short": Short()}, items)
    with pytest.raises(ScoreError, match=r"few: comparison 1 has . candidates but got 1 scores"):
        evaluate({"few": Few(), "fine": fine}, items)
    with pytest.raises(ScoreError, match="many gave scores for more than the 4 comparisons"):
        evaluate({"fine": fine, "many": Many()}, items)


def test_bad_input_is_refused_before_the_model_runs():
    scorer = FakeScorer(noisy)
    missing = [*corpus(), Comparison("p", None, ("a", "b"), (0, 1))]
    for items, options, message in (
        (missing, {}, "1 of 61 comparisons have no reference, the first is comparison 61"),
        (corpus(), {"by": "subst"}, "did you mean 'subset'"),
        (corpus(), {"baselines": ["rouge"]}, "unknown baseline 'rouge'"),
        (corpus(), {"reference": "frontier"}, "unknown reference mode 'frontier'"),
        ([], {}, "no comparisons"),
        (iter(corpus()), {}, "read several times"),
    ):
        with pytest.raises(PolarError, match=message):
            run(scorer, items, **options)
    with pytest.raises(PolarError, match="nothing to evaluate"):
        evaluate({}, corpus())
    assert scorer.calls == 0
    report = run(scorer, missing, reference="empty")
    assert report["reference"]["mode"] == "empty"
    assert list(report["contenders"]) == ["model", "length"]  # TF-IDF has nothing to compare with


def test_references_are_required_only_if_a_contender_reads_them():
    items = [replace(item, reference=None) for item in corpus()]
    blind = Given("blind", FakeScorer(noisy))
    blind.reads_references = False
    report = evaluate([blind], items).report
    assert (report["reference"]["mode"], list(report["contenders"])) == ("empty", ["blind", "length"])
    report = evaluate([blind], corpus()).report
    assert (report["reference"]["mode"], list(report["contenders"])) == ("given", ["blind", "length", "tfidf"])
    with pytest.raises(PolarError, match="60 of 60 comparisons have no reference"):
        evaluate([blind, Given("reader", FakeScorer(noisy))], items)
    tfidf = make_baselines(["tfidf"])["tfidf"]
    with pytest.raises(PolarError, match="tfidf compares with the reference, and there is none with --reference empty"):
        evaluate([blind, tfidf], items, reference="empty")


def test_copies_of_the_reference_are_reported_and_counted():
    items = corpus(40)
    items[3] = replace(items[3], reference=items[3].candidates[0].upper())
    report = run(FakeScorer(noisy), items)
    assert report["reference"]["reference_equals_candidate"] == 1
    assert any("equal, or nearly" in line for line in report["warnings"])
    assert report["n_pairs"] == run(FakeScorer(noisy), corpus(40))["n_pairs"]


def test_missing_group_values_are_a_group_and_a_warning():
    items = corpus()
    items[0] = replace(items[0], metadata={"prompt_id": "p0"})
    report = run(FakeScorer(noisy), items, by="subset")
    assert "(none)" in report["by"]
    assert report["warnings"] == [
        "1 comparisons have no 'subset': they are in the group (none)",
        "4 of 4 groups have fewer than 30 prompts: their intervals are too narrow, or missing",
    ]


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

    scores = score_pairs({"model": FakeScorer(noisy, window=20), "length": make_baselines(["length"])["length"]}, stream())
    assert drawn == 400 and peak <= 100
    assert len(scores.margins("model")) == len(scores.margins("length")) == len(scores.pairs) == len(scores.pairs.prompts)


def test_models_are_in_memory_one_after_another_and_others_share_a_pass():
    passes, alive, log = [], [], []

    class Weights(Given):
        has_weights = True

        def load(self):
            assert not any(weights() is not None for weights in alive)
            scorer = FakeScorer(noisy)
            alive.append(weakref.ref(scorer))
            log.append(f"load {self.name}")
            return scorer

        def release(self):
            assert alive[-1]() is None  # nothing refers to the model when its memory is freed
            log.append(f"release {self.name}")

    class Counted(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    items = Counted(corpus())
    report = evaluate([Weights("a", None), Given("light", FakeScorer(noisy)), Weights("b", None)], items).report
    assert log == ["load a", "release a", "load b", "release b"]
    assert list(report["contenders"]) == ["a", "light", "b", "length", "tfidf"]
    assert len(passes) - 1 == 4  # one iter() checks that it can be read twice; then the checks, contenders without weights, a, b
    assert len({numbers["accuracy"] for name, numbers in report["contenders"].items() if name in ("a", "b", "light")}) == 1


def test_data_that_change_between_two_passes_are_refused():
    class Growing(list):
        def __iter__(self):
            self.append(Comparison("p", "r", ("a", "b"), (0, 1)))
            return super().__iter__()

    with pytest.raises(PolarError, match="the data changed while they were read"):
        run(FakeScorer(noisy), Growing(corpus()))


def test_progress_and_seed():
    seen = []
    items = corpus(6)

    def progress(task, done, total, status=""):
        seen.append((task, done, total))

    first = evaluate({"model": FakeScorer(noisy)}, items, progress=progress)
    assert seen == [("model, length, tfidf", i, 6) for i in range(1, 7)]
    assert first.report == run(FakeScorer(noisy), items)
    more = corpus(60)
    zero, one = (run(FakeScorer(noisy), more, seed=seed)["contenders"]["model"]["ci95"] for seed in (0, 1))
    assert zero != one
    assert np.array_equal(first.scores.pairs.prompts, np.sort(first.scores.pairs.prompts))


def test_notes_of_scores_are_kept_by_candidate_and_counted_by_comparison():
    class Noting:
        def score_comparisons(self, comparisons):
            for number, _ in enumerate(comparisons):
                notes = [("truncated", "tied") if number == 1 and i == 1 else ("empty",) if number == 3 else () for i in range(2)]
                yield NotedScores([float(i) for i in range(2)], notes if number else ()) if number != 2 else [0.0, 1.0]

    items = [Comparison(f"p{i}", "r", ("a", "b"), (0, 1)) for i in range(5)]
    result = evaluate({"model": Noting()}, items, baselines=())
    scores = result.scores.scores["model"]
    assert [scores.notes_of(i) for i in range(10)] == [[], [], [], ["truncated", "tied"], [], [], ["empty"], ["empty"], [], []]
    assert result.report["facts"]["model"]["noted"] == {"truncated": 1, "tied": 1, "empty": 1}
    assert "model: 1 comparisons have a text that was truncated to the encoder's limits" in result.report["warnings"]
