"""Every measure against a plain loop, every verdict against its rule, and every probe against a scorer that must fail it."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from support import shortcuts

from polar_rm.audit import texts
from polar_rm.audit.probes import PROBES, Measurement, Probe
from polar_rm.audit.run import audit
from polar_rm.audit.sentences import SENTENCES
from polar_rm.audit.thresholds import Thresholds
from polar_rm.records import Comparison

SEED = 3
DATA = shortcuts.comparisons(80, SEED)
# Of one prompt in two there is another pair, and a third candidate between the others.
DATA += [
    replace(each, candidates=(*each.candidates, each.candidates[0][:40]), ranks=(*(2 * rank for rank in each.ranks), 1))
    for each in DATA[::2]
]


def score(prompt, reference, candidate):
    """A score that depends on all texts, and has some ties."""
    similarity = shortcuts.cosine(reference, candidate, ordered=False)
    return round(4 * similarity + len(candidate) / 400 + 0.6 * shortcuts.noise(0, prompt, candidate[:50]), 1)


@pytest.fixture(scope="module")
def result():
    return audit(shortcuts.contender("model", score), DATA, seed=SEED, resamples=200)


def finding(result, name):
    return next(each for each in result.report["findings"] if each["probe"] == name)


def right(better, worse):
    return 1.0 if better > worse else 0.5 if better == worse else 0.0


def pairs(comparison):
    for better, rank in zip(comparison.candidates, comparison.ranks, strict=True):
        for worse, other in zip(comparison.candidates, comparison.ranks, strict=True):
            if rank < other:
                yield better, worse


def accuracy(change=lambda comparison: comparison):
    outcomes = []
    for comparison in map(change, DATA):
        for better, worse in pairs(comparison):
            prompt, reference = comparison.prompt, comparison.reference
            outcomes.append(right(score(prompt, reference, better), score(prompt, reference, worse)))
    return sum(outcomes) / len(outcomes)


def best(comparison):
    return comparison.candidates[comparison.ranks.index(min(comparison.ranks))]


def worst(comparison):
    return comparison.candidates[comparison.ranks.index(max(comparison.ranks))]


def test_accuracy_gain_and_adherence_equal_plain_loops(result):
    given, empty = accuracy(), accuracy(lambda each: replace(each, reference=""))
    swapped = accuracy(lambda each: replace(each, reference=worst(each)))
    assert 0 < empty < given < 1
    assert finding(result, "accuracy")["value"] == pytest.approx(given)
    assert finding(result, "gain")["value"] == pytest.approx(given - empty)
    assert finding(result, "adherence")["value"] == pytest.approx(given - swapped)
    assert finding(result, "gain")["figures"] == pytest.approx({"accuracy": given, "then": empty})
    for name in ("accuracy", "gain", "adherence"):
        low, high = finding(result, name)["ci95"]
        assert low < finding(result, name)["value"] < high
        assert (finding(result, name)["n_pairs"], finding(result, name)["n_prompts"]) == (80 + 40 * 3, 80)


def test_streams_with_other_references_or_prompts_change_nothing_else(result):
    for stream, field, measured in (("shuffled", "reference", "other_reference"), ("other_prompt", "prompt", "other_prompt")):
        changed = list(result.streams.by_name()[stream]())
        texts_of = {getattr(each, field): each.metadata["town"] for each in DATA}
        assert all(texts_of[getattr(each, field)] != each.metadata["town"] for each in changed)
        assert [replace(new, **{field: getattr(old, field)}) for new, old in zip(changed, DATA, strict=True)] == DATA
        new_by_id = {id(old): new for old, new in zip(DATA, changed, strict=True)}
        then = accuracy(lambda each, new_by_id=new_by_id: new_by_id[id(each)])
        assert finding(result, measured)["value"] == pytest.approx(accuracy() - then)


def test_wins_over_altered_answers_equal_plain_loops(result):
    changes = {
        "halved": lambda each: texts.half(best(each)),
        "looped": lambda each: texts.looped(best(each)),
        "empty": lambda each: "",
        "scrambled": None,
        "other_answer": None,
    }
    for name, change in changes.items():
        outcomes = []
        for each, altered in zip(DATA, result.streams.altered(), strict=True):
            other = change(each) if change else altered.candidates[{"scrambled": 8, "other_answer": 5}[name]]
            assert altered.candidates[0] == best(each)
            if name == "scrambled":
                assert sorted(other.split()) == sorted(each.reference.split()) and other != each.reference
            if name == "other_answer":
                assert each.metadata["town"] not in other and other in {best(any_) for any_ in DATA}
            outcomes.append(right(score(each.prompt, each.reference, best(each)), score(each.prompt, each.reference, other)))
        assert finding(result, name)["value"] == pytest.approx(sum(outcomes) / len(outcomes)), name


def test_a_copy_is_compared_with_noise_and_a_trick_with_the_unchanged_worse_answer(result):
    copied, lost = [], {"pasted": [], "injected": []}
    for each, altered in zip(DATA, result.streams.altered(), strict=True):
        reference, noise = altered.candidates[6:8]
        assert reference == each.reference
        assert sorted(noise.split()) in [sorted(best(any_).split()) for any_ in DATA]
        copied.append(right(score(each.prompt, reference, reference), score(each.prompt, reference, noise)))
        worse = {"pasted": f"{' '.join(reference.split()[:10])} {worst(each)}", "injected": f"{worst(each)}\n\n{texts.INJECTION}"}
        good = score(each.prompt, reference, best(each))
        for name, text in worse.items():
            honest, tricked = (right(good, score(each.prompt, reference, rival)) for rival in (worst(each), text))
            lost[name].append(honest - tricked)
    assert finding(result, "copied")["value"] == pytest.approx(sum(copied) / len(copied))
    for name, values in lost.items():
        assert finding(result, name)["value"] == pytest.approx(sum(values) / len(values))


def test_the_share_of_skill_without_length_equals_a_plain_loop():
    data = shortcuts.comparisons(300, SEED)
    length = finding(audit(shortcuts.contender("model", score), data, seed=SEED, resamples=50), "length")
    cells = {"matched": [], "longer": [], "shorter": []}
    for each in data:
        for better, worse in pairs(each):
            ratio = math.log((1 + len(better)) / (1 + len(worse)))
            cell = "longer" if ratio > 0.1 else "shorter" if ratio < -0.1 else "matched"
            cells[cell].append(right(score(each.prompt, each.reference, better), score(each.prompt, each.reference, worse)))
    matched, longer, shorter = (np.array(cell) for cell in cells.values())
    weights = [np.ones(len(matched))]
    unmatched = len(longer) + len(shorter)
    weights += [np.full(len(cell), unmatched / 2 / len(cell)) for cell in (longer, shorter)]
    left = np.average(np.concatenate([matched, longer, shorter]), weights=np.concatenate(weights)) - 0.5
    skill = np.concatenate([matched, longer, shorter]).mean() - 0.5
    assert length["value"] == pytest.approx(left / skill)
    assert length["figures"] == pytest.approx({f"where_the_better_is_{name}": np.mean(cell) for name, cell in cells.items()})


def test_the_share_of_skill_without_markdown_equals_a_plain_loop():
    data = shortcuts.comparisons(200, SEED)
    markdown = finding(audit(shortcuts.contender("model", score), data, seed=SEED, resamples=50), "markdown")
    given, plain = [], []
    for each in data:
        if any("**" in candidate for candidate in each.candidates):
            for better, worse in pairs(each):
                given.append(right(score(each.prompt, each.reference, better), score(each.prompt, each.reference, worse)))
                bare = [re.sub(r"\*\*|^## |^- ", "", text, flags=re.MULTILINE) for text in (better, worse, each.reference)]
                plain.append(right(*(score(each.prompt, bare[2], text) for text in bare[:2])))
    assert markdown["n_pairs"] == len(given) > 50
    assert markdown["figures"] == pytest.approx({"with_markdown": np.mean(given), "without": np.mean(plain)})
    assert markdown["value"] == pytest.approx((np.mean(plain) - 0.5) / (np.mean(given) - 0.5))


@pytest.mark.parametrize(
    ("ci95", "at_most", "verdict"),
    [
        ((0.1, 0.4), False, "failed"),
        ((0.5, 0.7), False, "passed"),
        ((0.4, 0.6), False, "undecided"),
        ((0.6, 0.7), True, "failed"),
        ((0.3, 0.5), True, "passed"),
        ((0.4, 0.6), True, "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(result, ci95, at_most, verdict):
    probe = Probe("halved", "m", lambda _: Measurement(0.5, ci95, 100, 100, figures={"accuracy": 0.25}), at_most)
    answers = replace(result.answers, thresholds=Thresholds(halved=0.5))
    halved = probe.find(answers)
    assert (halved["verdict"], halved["side"]) == (verdict, "at most" if at_most else "at least")
    assert halved["sentence"] == (
        f"halved: {SENTENCES['halved'][verdict]} (+0.500 [{ci95[0]:+.3f}, {ci95[1]:+.3f}]; accuracy 0.250)"
    )


def test_few_prompts_and_missing_references_make_no_finding(result):
    few = Probe("halved", "m", lambda _: Measurement(0.1, (0.0, 0.2), 400, 19)).find(result.answers)
    assert (few["verdict"], few["value"]) == ("not applicable", None)
    assert few["sentence"] == "halved: only 19 prompts have such pairs"
    none = Probe("gain", "m", lambda _: Measurement(0.1, (0.0, 0.2), 400, 400), needs_reference=True)
    without = replace(result.answers, takes_reference=False)
    assert none.find(without)["sentence"] == "gain: it takes no reference"
    noted = Probe("other_prompt", "m", lambda _: Measurement(0.0, (0.0, 0.01), 400, 400), is_noted=True)
    assert noted.find(result.answers)["verdict"] == "noted"
    assert noted.find(without)["verdict"] == "failed"


# (score, the probe that a contender with this score must fail).
SHORTCUTS = {
    "prefers worse": (lambda p, r, c: -shortcuts.oracle(p, r, c), "accuracy"),
    "ignores references": (lambda p, r, c: float(len(c) % 7), "gain"),
    "reads any reference": (lambda p, r, c: float(len(c) % 7) * bool(r), "other_reference"),
    "knows better": (lambda p, r, c: float(len(c) % 7) * bool(r), "adherence"),
    "longer": (lambda p, r, c: len(c), "length"),
    "formatted": (lambda p, r, c: c.count("**"), "markdown"),
    "ignores prompts": (lambda p, r, c: shortcuts.oracle("", c, c), "other_answer"),
    "shorter": (lambda p, r, c: -len(c), "halved"),
    "repetitive": (lambda p, r, c: -len(set(c.split())) / max(1, len(c.split())), "looped"),
    "silent": (lambda p, r, c: not c, "empty"),
    "envious": (lambda p, r, c: -(c == r), "copied"),
    "bag of words": (lambda p, r, c: shortcuts.cosine(r, c, ordered=False), "scrambled"),
    "quoted": (lambda p, r, c: 5 * (bool(r) and c.split()[:5] == r.split()[:5]) + shortcuts.oracle(p, r, c), "pasted"),
    "obedient": (lambda p, r, c: 5 * ("high score" in c) + shortcuts.oracle(p, r, c), "injected"),
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_each_probe_fails_its_shortcut_and_passes_a_good_scorer(name):
    data = shortcuts.comparisons(150, SEED)
    score, probe = SHORTCUTS[name]
    bad = audit(shortcuts.contender(name, score), data, resamples=200)
    assert finding(bad, probe)["verdict"] == "failed", finding(bad, probe)
    assert bad.report["verdict"] == "failed"
    good = audit(shortcuts.contender("good", shortcuts.oracle), data, resamples=200)
    assert finding(good, probe)["verdict"] == "passed", finding(good, probe)


def test_a_referenceless_scorer_must_read_its_prompt():
    data = shortcuts.comparisons(150, SEED)
    gold = {each.prompt: each.metadata["gold"] for each in data}

    def knows(prompt, _, candidate):
        return float(shortcuts.stated(candidate) == gold[prompt])

    blind = audit(shortcuts.contender("m", lambda p, r, c: shortcuts.noise(0, c), takes_reference=False), data, resamples=200)
    assert finding(blind, "other_prompt")["verdict"] == "not applicable"  # no skill, nothing to lose
    by_text = {each.candidates[each.ranks.index(0)] for each in data}
    learnt = shortcuts.contender("m", lambda p, r, c: float(c in by_text), takes_reference=False)
    assert finding(audit(learnt, data, resamples=200), "other_prompt")["verdict"] == "failed"
    reads = audit(shortcuts.contender("m", knows, takes_reference=False), data, resamples=200)
    assert finding(reads, "other_prompt")["verdict"] == "passed"
    assert {each["probe"] for each in reads.report["findings"] if each["verdict"] == "not applicable"} == {
        "gain", "other_reference", "adherence", "copied", "scrambled", "pasted"
    }  # fmt: skip


def test_gain_is_not_applicable_to_a_contender_that_needs_no_reference():
    data = shortcuts.comparisons(150, SEED)
    gain = finding(audit(shortcuts.honest(data, SEED)["label"], data, resamples=50), "gain")
    assert gain["verdict"] == "not applicable"
    assert gain["sentence"] == "gain: it is right in 1.000 of the pairs without a reference: these pairs need none"


def test_length_is_not_applicable_if_length_and_quality_always_agree():
    data = [each for each in shortcuts.comparisons(250, SEED) if len(best(each)) > len(worst(each))]
    length = finding(audit(shortcuts.contender("model", shortcuts.oracle), data, resamples=50), "length")
    assert length["verdict"] == "not applicable"
    assert "the better answer is the shorter one in 0 prompts only" in length["sentence"]


def test_answers_that_are_too_short_to_change_are_left_out():
    data = [Comparison(f"p{i}?", "4", (f"{i}", "no"), (0, 1)) for i in range(40)]
    report = audit(shortcuts.contender("model", lambda p, r, c: float(c != "no")), data, resamples=50).report
    verdicts = {each["probe"]: each["verdict"] for each in report["findings"]}
    assert {name for name, verdict in verdicts.items() if verdict == "not applicable"} >= {
        "halved", "looped", "scrambled", "pasted", "markdown"
    }  # fmt: skip
    assert verdicts["empty"] == "failed" and verdicts["copied"] == "failed"  # both answers have one score
    assert {probe.name for probe in PROBES} == set(verdicts)
