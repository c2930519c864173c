"""What contenders make of their references: every number against a plain loop, every sentence by its rule."""

import json
from dataclasses import replace

import numpy as np
import pytest

from polar_rm.errors import PolarError
from polar_rm.evaluation import evaluate
from polar_rm.evaluation.contenders import Given
from polar_rm.evaluation.reference_use import PROTOCOLS, sentence, use_sentences, use_table
from polar_rm.evaluation.tables import reference_words, summarise
from polar_rm.records import Comparison

RNG = np.random.default_rng(0)
WORDS = [f"w{i}" for i in range(300)]


def text(rng, *kept):
    return " ".join([*kept, *rng.choice(WORDS, rng.integers(3, 9))])


def corpus(n=90):
    """Good answers hold the reference's first word; some comparisons have two bad answers, some prompts two comparisons."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(n):
        key = f"key{number}"
        candidates = (text(rng, key), text(rng), text(rng))[: 3 if number % 3 == 0 else 2]
        items.append(Comparison(f"prompt {number // 2}", text(rng, key), candidates, (0, 1, 1)[: len(candidates)]))
    return items


class Overlap:
    """Counts words that are the reference's too, and adds noise that depends on the prompt."""

    def score_comparisons(self, comparisons):
        for each in comparisons:
            yield [overlap(each.prompt, each.reference, candidate) for candidate in each.candidates]


def overlap(prompt, reference, candidate):
    return len(set(reference.split()) & set(candidate.split())) + (hash_of(prompt, candidate) % 100) / 60


def hash_of(*texts):
    return sum(ord(character) * (index + 7) for index, character in enumerate("".join(texts)))


def literal(items, references):
    """1, 0.5 or 0 for each pair, in order."""
    outcomes = []
    for item, reference in zip(items, references, strict=True):
        for better, worse in item.pairs():
            first, second = (overlap(item.prompt, reference, item.candidates[index]) for index in (better, worse))
            outcomes.append(1.0 if first > second else 0.5 if first == second else 0.0)
    return np.array(outcomes)


@pytest.fixture(scope="module")
def blind():
    contender = Given("blind", Overlap())
    contender.reads_references = False
    return contender


@pytest.fixture(scope="module")
def result(blind):
    return evaluate([Given("model", Overlap()), blind], corpus(), reference="all", resamples=500)


def test_accuracies_gain_and_adherence_equal_plain_loops(result):
    items, use = corpus(), result.report["reference"]["use"]
    uses = use["contenders"]["model"]
    given, empty = literal(items, [item.reference for item in items]), literal(items, [""] * len(items))
    assert uses["accuracy"]["given"]["accuracy"] == pytest.approx(given.mean())
    assert uses["accuracy"]["empty"]["accuracy"] == pytest.approx(empty.mean())
    assert uses["gain"]["difference"] == pytest.approx((given - empty).mean())
    assert (uses["gain"]["n_pairs"], result.report["n_pairs"]) == (120, 120)
    assert given.mean() == result.report["contenders"]["model"]["accuracy"] > 0.8
    # With two bad answers the swapped one is drawn, and is one of these two; a pair has only one.
    low, high = (literal(items, [item.candidates[index] for item in items]) for index in (1, -1))
    assert min(low.mean(), high.mean()) - 0.1 < uses["accuracy"]["swapped"]["accuracy"] < max(low.mean(), high.mean()) + 0.1
    pairs = evaluate({"model": Overlap()}, [item for item in items if len(item.candidates) == 2], reference="all", resamples=10)
    only = [item for item in items if len(item.candidates) == 2]
    swapped = literal(only, [item.candidates[1] for item in only])
    of_pairs = pairs.report["reference"]["use"]["contenders"]["model"]
    expected = literal(only, [item.reference for item in only]) - swapped
    assert of_pairs["adherence"]["difference"] == pytest.approx(expected.mean())
    assert of_pairs["adherence_elsewhere"] is None


def test_intervals_are_of_the_paired_difference(result):
    items = corpus()
    delta = literal(items, [item.reference for item in items]) - literal(items, [""] * len(items))
    prompts = np.array([int(item.prompt.split()[1]) for item in items for _ in item.pairs()])
    rng = np.random.default_rng(5)
    means = []
    for _ in range(4000):
        drawn = rng.integers(45, size=45)
        means.append(np.concatenate([delta[prompts == prompt] for prompt in drawn]).mean())
    expected = np.quantile(means, [0.025, 0.975])
    assert result.report["reference"]["use"]["contenders"]["model"]["gain"]["ci95"] == pytest.approx(expected, abs=0.02)


def test_pairs_with_the_swapped_reference_are_counted_and_the_others_reported_separately(result):
    use = result.report["reference"]["use"]
    # 60 comparisons of two answers: the swapped one is the worse one. 30 of three: in one of two pairs.
    assert use["swapped_pairs"] == 60 + 30
    elsewhere = use["contenders"]["model"]["adherence_elsewhere"]
    assert elsewhere["n_pairs"] == 30
    assert elsewhere["difference"] < use["contenders"]["model"]["adherence"]["difference"]
    lines = use_sentences(use, 120)
    assert "in 90 of 120 pairs the swapped reference is the worse answer itself: that one is a copy" in lines
    assert any(line.startswith("model: adherence +") and line.endswith("in the 30 other pairs") for line in lines)


def test_a_contender_that_takes_no_reference_is_scored_once(result):
    uses = result.report["reference"]["use"]["contenders"]
    assert list(uses["model"]["accuracy"]) == list(PROTOCOLS) and list(uses) == ["model", "blind", "length", "tfidf"]
    assert list(uses["blind"]["accuracy"]) == ["empty"] and not uses["blind"]["takes_reference"]
    assert {uses["blind"][gap] for gap in ("gain", "adherence", "other_reference", "adherence_elsewhere")} == {None}
    assert uses["blind"]["sentence"] == "blind does not take a reference: it was scored without one"
    assert uses["blind"]["accuracy"]["empty"] == uses["model"]["accuracy"]["empty"]
    rows = use_table(result.report["reference"]["use"]).rows
    assert [row[1] for row in rows] == [*PROTOCOLS, "does not take a reference", *PROTOCOLS, *PROTOCOLS]
    assert [row[4] for row in rows] == ["", "gain", "", "adherence", "", *["", "gain", "", "adherence"] * 2]


def test_the_other_numbers_are_those_of_given_references(result):
    plain = evaluate({"model": Overlap()}, corpus(), resamples=500).report
    for name in ("model", "length", "tfidf"):  # length needs no references, but uses them if there are any
        assert result.report["contenders"][name] == plain["contenders"][name]
    without = evaluate({"model": Overlap()}, corpus(), reference="empty", resamples=500).report["contenders"]["length"]
    assert plain["contenders"]["length"] != without
    assert (result.report["reference"]["mode"], plain["reference"]["use"]) == ("given", None)
    assert json.loads(json.dumps(result.report)) == result.report
    shown = summarise(result.report)
    assert [table.title.partition(" (")[0] for table in shown.tables] == ["pairwise accuracy", "accuracy by reference"]
    assert any(line.startswith("model uses its reference and gains from it: gain +") for line in shown.sentences)


def test_swapped_references_that_equal_candidates_are_counted():
    report = evaluate({"model": Overlap()}, corpus(), reference="swapped", resamples=10).report
    assert report["reference"]["reference_equals_candidate"] == 90
    assert any(line.startswith("90 comparisons have a reference that is equal, or nearly") for line in report["warnings"])
    blank = [replace(item, reference=None) for item in corpus()]
    assert evaluate({"model": Overlap()}, blank, reference="swapped", resamples=10).report["contenders"] == report["contenders"]
    with pytest.raises(PolarError, match="90 of 90 comparisons have no reference"):
        evaluate({"model": Overlap()}, blank, reference="all")


def test_the_origin_of_references_is_in_the_report_and_the_title():
    items = [replace(item, metadata={"reference_protocol": "sibling"}) for item in corpus()]
    report = evaluate({"model": Overlap()}, items, resamples=10).report
    assert report["reference"]["protocols"] == {"sibling": 90}
    assert "reference given (sibling)" in summarise(report).tables[0].title
    mixed = evaluate({"model": Overlap()}, [*items[:80], *corpus()[80:]], reference="shuffled", resamples=10).report
    assert reference_words(mixed["reference"]) == "shuffled (sibling 80, given 10)"
    none = evaluate({"model": Overlap()}, items, reference="empty", resamples=10).report
    assert none["reference"]["protocols"] == {} and reference_words(none["reference"]) == "empty"


UP, DOWN, OPEN, NONE = ([0.1, 0.3], [-0.3, -0.1], [-0.1, 0.1], None)


@pytest.mark.parametrize(
    ("gain", "adherence", "words"),
    [
        (UP, UP, "m uses its reference and gains from it: gain +0.000 [+0.100, +0.300], adherence +0.000 [+0.100, +0.300]"),
        (UP, OPEN, "m gains from its reference, but as much from a worse answer in place of it: "),
        (DOWN, UP, "m is worse with its reference than without one: "),
        (OPEN, UP, "m follows its reference, but there is no evidence that it gains from it: "),
        (OPEN, DOWN, "m is better with a worse answer as its reference: "),
        (OPEN, OPEN, "there is no evidence that m uses its reference: "),
        (NONE, NONE, "there is no evidence that m uses its reference: gain +0.000 (no interval)"),
    ],
)
def test_sentences(gain, adherence, words):
    gaps = [{"difference": 0.0, "ci95": ci95, "n_pairs": 9} for ci95 in (gain, adherence)]
    assert sentence("m", {"gain": gaps[0], "adherence": gaps[1]}).startswith(words)
