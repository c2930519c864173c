"""Best of n against brute force, known curves, and files in every form."""

import json
import math
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from scipy.integrate import quad, trapezoid

from polar_rm.errors import BadRow, PolarError
from polar_rm.evaluation.best_of import kl_of_best_of, pick_probabilities
from polar_rm.evaluation.bestofn import best_of_n, best_of_n_files
from polar_rm.evaluation.bestofn.measure import sizes_up_to
from polar_rm.evaluation.bestofn.samples import SampleFiles, to_sampled_comparison
from polar_rm.evaluation.bestofn.tables import peak_sentence, summarise
from polar_rm.evaluation.contenders.baselines import Length
from polar_rm.evaluation.statistics import paired_difference
from polar_rm.records import InvalidRecord, OnBadRow, Samples, to_samples


class Spelled:
    """Scores that candidates spell, such as ``0.5 2.0``: the word with this index."""

    def __init__(self, index=0):
        self.index = index

    def score_comparisons(self, comparisons):
        for comparison in comparisons:
            yield [float(text.split()[self.index]) for text in comparison.candidates]


def sampled(golds, *scores):
    """A comparison for each prompt, whose samples spell their scores. golds, scores: a list for each prompt."""
    found = []
    for number, (gold, *own) in enumerate(zip(golds, *scores, strict=True)):
        outputs = tuple(" ".join(map(repr, map(float, each))) for each in zip(*own, strict=True))
        found.append(to_sampled_comparison([Samples(f"prompt {number}", None, outputs, tuple(map(float, gold)))]))
    return found


def run(comparisons, n_scorers=1, **options):
    names = [f"s{i}" for i in range(n_scorers)]
    scorers = {name: Spelled(i) for i, name in enumerate(names)}
    return best_of_n(scorers, comparisons, reference="empty", **{"baselines": (), "resamples": 200, **options})


def brute_force(scores, values, n):
    """The mean over all subsets of the value of the top-scored sample; the mean over tied ones."""
    means = []
    for subset in combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        means.append(np.mean([values[i] for i in subset if scores[i] == top]))
    return np.mean(means)


def test_curves_are_the_means_over_all_subsets_with_ties():
    rng = np.random.default_rng(0)
    golds, scores = rng.random((5, 7)), rng.integers(0, 4, (5, 7)) / 2
    report = run(sampled(golds, scores), max_n=7).report
    assert [point["n"] for point in report["points"]] == [1, 2, 4, 7]
    standard = (scores - scores.mean()) / scores.std()
    curve = report["contenders"]["s0"]
    for i, n in enumerate((1, 2, 4, 7)):
        assert curve["gold"][i]["value"] == pytest.approx(
            np.mean([brute_force(s, g, n) for s, g in zip(scores, golds, strict=True)])
        )
        assert curve["proxy"][i]["value"] == pytest.approx(
            np.mean([brute_force(s, z, n) for s, z in zip(scores, standard, strict=True)])
        )
        assert report["points"][i]["oracle"]["value"] == pytest.approx(np.mean([brute_force(g, g, n) for g in golds]))
        assert report["points"][i]["random"]["value"] == pytest.approx(golds.mean())
    assert (curve["proxy_mean"], curve["proxy_deviation"]) == (pytest.approx(scores.mean()), pytest.approx(scores.std()))


def test_probabilities_to_be_picked_are_those_of_drawn_subsets():
    scores = [0.3, 0.9, 0.9, 0.1]
    for n, row in zip((1, 2, 3, 4), pick_probabilities(scores, (1, 2, 3, 4)), strict=True):
        assert row == pytest.approx([brute_force(scores, np.eye(4)[i], n) for i in range(4)])
        assert row.sum() == pytest.approx(1)


def test_copies_count_as_samples():
    rng = np.random.default_rng(1)
    golds, scores, copies = rng.random(4), rng.random(4), [1, 3, 2, 1]
    rows = [Samples("p", None, (repr(float(s)),), (float(g),), c) for g, s, c in zip(golds, scores, copies, strict=True)]
    report = run([to_sampled_comparison(rows)]).report
    assert report["n_samples"] == report["max_n"] == 7
    for i, n in enumerate((1, 2, 4, 7)):
        expected = brute_force(np.repeat(scores, copies), np.repeat(golds, copies), n)
        assert report["contenders"]["s0"]["gold"][i]["value"] == pytest.approx(expected)


def test_the_divergence_is_that_of_the_best_of_n_uniform_numbers():
    for n in (1, 2, 5, 64):
        expected, _ = quad(lambda u, n=n: 0 if u == 0 else n * u ** (n - 1) * math.log(n * u ** (n - 1)), 0, 1)
        assert kl_of_best_of([n])[0] == pytest.approx(expected, abs=1e-6)


def test_the_sizes_are_powers_of_two_and_the_largest():
    assert [sizes_up_to(n) for n in (2, 3, 11, 16)] == [[1, 2], [1, 2, 3], [1, 2, 4, 8, 11], [1, 2, 4, 8, 16]]
    assert sizes_up_to(64) == [1, 2, 4, 8, 16, 32, 64]


def test_who_scores_by_gold_is_the_oracle_and_who_draws_gains_nothing():
    rng = np.random.default_rng(2)
    golds = rng.random((60, 16))
    scores = np.stack([3 * golds - 1, rng.random((60, 16)), np.ones((60, 16))])
    report = run(sampled(golds, *scores), 3).report
    oracle, drawn, constant = report["contenders"].values()
    for point, gold in zip(report["points"], oracle["gold"], strict=True):
        assert gold["value"] == pytest.approx(point["oracle"]["value"])
        assert gold["ci95"] == pytest.approx(point["oracle"]["ci95"])
    assert oracle["area"]["value"] == pytest.approx(0, abs=1e-12)
    assert oracle["gamma"]["value"] == pytest.approx(0, abs=1e-12)
    assert oracle["regret"]["value"] == pytest.approx(0, abs=1e-12)
    assert oracle["peak"] == {"n": 16, "ci95": [16, 16]}
    low, high = drawn["gain"]["ci95"]
    assert low < 0 < high
    assert drawn["area"]["value"] > 0.3
    assert [each["value"] for each in constant["gold"]] == pytest.approx([golds.mean()] * 5)
    assert (constant["area"], constant["gamma"]) == (None, None)
    assert report["warnings"] == ["s2 gives equal scores to all samples of a prompt: nothing is picked by it"]
    assert peak_sentence("s0", oracle, 16) == "s0: gold rises up to n = 16"
    assert peak_sentence("s1", drawn, 16) == "s1: the top-scored of 16 can't be told from a random sample"


def planted(n_prompts=200, n=64, seed=3):
    """Gold rises with the score up to 1, and falls beyond: x - x^2 / 2 of standard normal scores x."""
    scores = np.random.default_rng(seed).normal(size=(n_prompts, n))
    return scores - scores**2 / 2, scores


def test_a_planted_over_optimised_proxy_is_found_with_its_peak():
    golds, scores = planted()
    report = run(sampled(golds, scores)).report
    curve = report["contenders"]["s0"]
    # Gold of the best of n in the limit of many prompts, by drawing.
    drawn = np.random.default_rng(4).normal(size=(40_000, 64))
    tops = np.maximum.accumulate(drawn, axis=1)
    limit = (tops - tops**2 / 2).mean(axis=0)
    peak = int(limit.argmax()) + 1
    assert 3 < peak < 10
    low, high = curve["peak"]["ci95"]
    assert low <= peak <= high
    assert high < 32
    assert curve["drop"]["ci95"][0] > 0
    assert curve["drop"]["value"] == pytest.approx(limit.max() - limit[-1], rel=0.15)
    proxies = [each["value"] for each in curve["proxy"]]
    assert proxies == sorted(proxies)
    sentence, *_ = summarise(report).sentences
    assert sentence.startswith(f"s0: gold peaks at n = {curve['peak']['n']} and falls by ")
    assert sentence.endswith(" up to n = 64: over-optimised")


def test_the_area_and_gamma_are_those_of_the_normalised_curves():
    golds, scores = planted(n_prompts=12, n=8)
    report = run(sampled(golds, scores), max_n=8).report
    sizes = range(1, 9)
    gold, proxy, oracle = (
        np.array([np.mean([brute_force(picked, value, n) for picked, value in zip(by, values, strict=True)]) for n in sizes])
        for by, values in ((scores, golds), (scores, scores), (golds, golds))
    )
    reached = (gold - gold[0]) / (oracle - oracle[0])[-1]
    promised = (proxy - proxy[0]) / (proxy - proxy[0])[-1]
    kl = [math.log(n) - (n - 1) / n for n in sizes]
    area = trapezoid(np.abs(promised - reached), kl)
    assert report["contenders"]["s0"]["area"]["value"] == pytest.approx(area)
    assert report["contenders"]["s0"]["gamma"]["value"] == pytest.approx(area / trapezoid(reached, kl))
    low, high = report["contenders"]["s0"]["area"]["ci95"]
    assert 0 < low < area < high


def test_flat_curves_are_rarely_said_to_fall():
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        report = run(sampled(rng.random((40, 8)), rng.random((40, 8)))).report
        drop = report["contenders"]["s0"]["drop"]
        found += drop["ci95"] is not None and drop["ci95"][0] > 0
    assert found <= 4


def test_groups_of_unequal_size_count_where_they_have_enough_samples():
    rng = np.random.default_rng(5)
    golds = [rng.random(n) for n in (8, 8, 8, 3, 1, 12)]
    scores = [rng.random(len(each)) for each in golds]
    result = run(sampled(golds, scores))
    report = result.report
    assert (report["max_n"], report["n_complete"], report["n_samples"]) == (8, 4, 40)
    assert [(point["n"], point["n_prompts"]) for point in report["points"]] == [(1, 6), (2, 5), (4, 4), (8, 4)]
    for i, n in enumerate((1, 2, 4, 8)):
        left = [(s, g) for s, g in zip(scores, golds, strict=True) if len(g) >= n]
        assert report["points"][i]["random"]["value"] == pytest.approx(np.mean([g.mean() for _, g in left]))
        assert report["contenders"]["s0"]["gold"][i]["value"] == pytest.approx(np.mean([brute_force(s, g, n) for s, g in left]))
    gain = np.mean([brute_force(s, g, 8) - g.mean() for s, g in zip(scores, golds, strict=True) if len(g) >= 8])
    assert report["contenders"]["s0"]["gain"]["value"] == pytest.approx(gain)
    below, single, above, few = report["warnings"]
    assert below.startswith("2 of 6 prompts have fewer than 8 samples: at each n")
    assert single == "1 of 6 prompts have a single sample and count at n = 1 only"
    assert above == "1 of 6 prompts have more than 8 samples, up to 12; --max-n sets a larger n"
    assert few == "the intervals rest on 4 prompts only and are too narrow"
    assert run(sampled(golds, scores), max_n=12).report["contenders"]["s0"]["gain"]["ci95"] is None


def test_contenders_are_compared_in_pairs():
    rng = np.random.default_rng(6)
    golds = rng.random((50, 4))
    good, bad = golds + rng.random((50, 4)), rng.random((50, 4))
    [difference] = run(sampled(golds, good, bad), 2, resamples=2000).report["differences"]
    tops = [np.array([g[s.argmax()] for g, s in zip(golds, scores, strict=True)]) for scores in (good, bad)]
    expected = paired_difference(*tops, np.arange(50))
    assert difference["difference"] == pytest.approx(expected.difference)
    assert difference["ci95"] == pytest.approx(expected.ci95)
    assert difference["verdict"] == "first"


def test_the_samples_of_two_policies_are_picked_apart_and_drawn_together():
    rows = [
        Samples("p", None, ("1.0", "0.0"), (1.0, 0.0), policy="a"),
        Samples("p", None, ("9.0", "8.0"), (0.0, 1.0), policy="b"),
    ]
    report = run([to_sampled_comparison([row]) for row in rows]).report
    assert (report["n_prompts"], report["n_policies"]) == (1, 2)
    assert report["contenders"]["s0"]["gold"][1] == {"value": 0.5, "ci95": None}


@pytest.mark.parametrize(
    ("golds", "options", "message"),
    [
        ([[1], [0]], {}, "every prompt has a single sample"),
        ([[1, 1], [0, 0]], {}, "the gold value is the same for all samples of every prompt"),
        ([[1, 0], [0, 1]], {"max_n": 3}, "--max-n 3: no prompt has so many samples; the most is 2"),
        ([[1, 0], [0, 1]], {"max_n": 1}, "--max-n must be at least 2, not 1"),
    ],
)
def test_samples_that_say_nothing_are_refused_before_scoring(golds, options, message):
    class Never:
        def score_comparisons(self, comparisons):
            raise AssertionError("asked")

    with pytest.raises(PolarError, match=message):
        best_of_n({"never": Never()}, sampled(golds, golds), reference="empty", baselines=(), **options)
    with pytest.raises(PolarError, match="pass a list or SampleFiles"):
        best_of_n({"never": Never()}, iter(sampled(golds, golds)))


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


ROWS = [
    {"prompt": f"p{i}", "reference": f"r{i}", "output": f"{i} " * k, "gold": (i + k) % 3 / 2, "id": f"{i}-{k}"}
    for i in range(6)
    for k in range(1, 5)
]


def table_of(rows, tmp_path, **options):
    files = SampleFiles([write(tmp_path / "samples.jsonl", rows)], **options)
    report = best_of_n([Length()], files, baselines=(), resamples=50).report
    return {name: report[name] for name in ("points", "contenders", "n_samples", "n_prompts")}


def test_every_form_of_a_file_gives_the_same_numbers(tmp_path):
    expected = table_of(ROWS, tmp_path)
    assert (expected["n_samples"], expected["n_prompts"]) == (24, 6)
    interleaved = sorted(ROWS, key=lambda row: row["id"][-1])
    assert table_of(interleaved, tmp_path) == expected
    groups = [ROWS[i : i + 4] for i in range(0, 24, 4)]
    lists = [
        {**group[0], "output": None, "gold": None, "outputs": [r["output"] for r in group], "golds": [r["gold"] for r in group]}
        for group in groups
    ]
    assert table_of(lists, tmp_path) == expected
    scored = [{**row, "correct": row["golds"]} for row in lists]
    assert table_of(scored, tmp_path, gold="correct") == expected
    trajectories = [
        {
            "source": "s",
            "prompt_id": row["prompt"],
            "prompt": row["prompt"],
            "reference": row["reference"],
            "policy": "a",
            "sample_id": 0,
            "text": row["output"],
            "correct": row["gold"],
            "dup_count": 1,
        }
        for row in ROWS
    ]
    assert table_of(trajectories, tmp_path, gold="correct") == expected
    first = table_of(interleaved, tmp_path, limit=2)
    assert (first["n_samples"], first["n_prompts"]) == (8, 2)


def test_a_verdict_is_a_gold_value_and_a_row_may_stand_for_several_samples():
    row = {"prompt": "p", "output": "o", "gold": True, "dup_count": 3, "extra": 1}
    assert to_samples(row) == Samples("p", None, ("o",), (1.0,), 3, metadata={"extra": 1})
    for bad, field in (({"dup_count": 0}, "dup_count"), ({"gold": "yes"}, "gold"), ({"output": None}, "output")):
        with pytest.raises(InvalidRecord, match=f"field '{field}'"):
            to_samples(row | bad)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"gold": None}, {}, "row 6: field 'gold': expected a number, not null; --on-bad-row skip leaves out"),
        ({"gold": math.inf}, {}, "row 6: field 'gold': expected a finite number, not inf"),
        ({}, {"gold": "correct"}, r"row 1: field 'correct': .*--gold names the column of the gold values \(columns .*: gold\)"),
        ({"reference": "another"}, {}, "row 6: field 'reference': expected the reference and wrapper of the earlier rows"),
        ({"reference": None, "prompt": "new"}, {}, "row 6: field 'reference': .*--reference empty .*--references FILE adds"),
        ({"outputs": ["a", "b"], "golds": [1]}, {}, "row 6: field 'golds': expected a list of 2 finite numbers"),
        ({"outputs": ["a", "b"], "golds": [1, None]}, {}, r"row 6: field 'golds\[1\]': expected a number, not null"),
        ({"outputs": ["a"], "golds": [1]}, {}, "row 6: field 'outputs': expected a list of at least two texts"),
    ],
)
def test_a_bad_row_is_told_by_file_row_and_field(tmp_path, change, options, message):
    rows = [dict(row) for row in ROWS]
    rows[5] |= change
    path = write(tmp_path / "samples.jsonl", rows)
    with pytest.raises(BadRow, match=message):
        best_of_n_files(["tfidf"], [path], baselines=(), **options)


def test_samples_without_gold_are_left_out_only_when_asked_and_counted(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[5]["gold"] = None
    path, side = write(tmp_path / "samples.jsonl", rows), tmp_path / "side.jsonl"
    result = best_of_n_files(["length"], [path], on_bad_row=OnBadRow("skip", side))
    assert result.report["n_samples"] == 23
    assert result.report["data"][0]["rows"] == 23
    assert f"1 bad rows were skipped, see {side}" in result.report["warnings"]
    assert len(side.read_text().splitlines()) == 1
    rows[8]["reference"] = None
    rows[8]["prompt"] = "new"
    write(path, rows)
    with pytest.raises(BadRow, match="row 9: field 'reference'"):  # for all rows alike, so it is no matter of skipping
        best_of_n_files(["tfidf"], [path], on_bad_row=OnBadRow("skip", side))


def test_references_come_from_a_file(tmp_path):
    path = write(tmp_path / "samples.jsonl", [row | {"reference": None} for row in ROWS])
    references = write(tmp_path / "references.jsonl", [{"prompt": f"p{i}", "reference": f"r{i}"} for i in range(6)])
    expected = best_of_n_files(["tfidf", "length"], [write(tmp_path / "whole.jsonl", ROWS)]).report
    found = best_of_n_files(["tfidf", "length"], [path], references=references).report
    assert found["contenders"] == expected["contenders"]
    assert found["reference"]["file"] == str(references)
    write(references, [{"prompt": f"p{i}", "reference": f"r{i}"} for i in range(5)])
    with pytest.raises(PolarError, match="no reference for comparison 6"):
        best_of_n_files(["tfidf"], [path], references=references)
    assert list(best_of_n_files(["length"], [path]).report["contenders"]) == ["length"]  # TF-IDF has nothing to compare with


@pytest.mark.parametrize("form", ["id", "number", "polar score", "lists"])
def test_stored_scores_are_joined_by_sample(tmp_path, form):
    path = write(tmp_path / "samples.jsonl", ROWS)
    golds = [row["gold"] for row in ROWS]
    match form:
        case "id":
            rows = [{"id": row["id"], "score": row["gold"]} for row in reversed(ROWS)]
        case "number":
            rows = [{"score": gold} for gold in golds]
        case "polar score":
            rows = [{"row": i, "reward": g, "metadata": {"id": ROWS[i - 1]["id"]}} for i, g in enumerate(golds, 1)][::-1]
        case "lists":
            rows = [{"scores": golds[i : i + 4]} for i in range(0, 24, 4)]
    scores = write(tmp_path / "scores.jsonl", rows)
    report = best_of_n_files([f"scores:{scores}"], [path], baselines=()).report
    [curve] = report["contenders"].values()
    assert [each["value"] for each in curve["gold"]] == pytest.approx([each["oracle"]["value"] for each in report["points"]])
    write(scores, rows[1:])
    with pytest.raises(PolarError, match="no scores of 1 of"):
        best_of_n_files([f"scores:{scores}"], [path], baselines=())


def test_memory_does_not_grow_with_the_texts(tmp_path):
    peaks = []
    for length in (10, 100_000):
        rows = ({"prompt": f"p{i // 2}", "output": f"{i} " + "x" * length, "gold": i % 3} for i in range(400))
        path = write(tmp_path / "samples.jsonl", rows)
        tracemalloc.start()
        report = best_of_n_files([Length()], [path], baselines=()).report
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report["n_samples"] == 400
    assert path.stat().st_size > 40_000_000
    assert peaks[1] - peaks[0] < 8_000_000, peaks


def test_several_references_of_a_prompt_are_combined(tmp_path):
    """The score of a sample is the mean of those under each reference; a row may have either column."""
    rows = [
        {"prompt": "p", "references": ["aa bb", "cc dd"], "outputs": ["aa bb", "zz", "aa cc"], "golds": [1, 0, 0.5]},
        {"prompt": "q", "reference": "aa bb", "outputs": ["zz", "aa bb"], "golds": [0, 1]},
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = best_of_n_files(["tfidf"], [tmp_path / "s.jsonl"], baselines=())
    assert found.report["reference"]["several"] == 1 and found.report["reference"]["combine"] == "mean"
    values = found.scores["tfidf"].values
    single = []
    for reference in rows[0]["references"]:
        one = {**rows[0], "reference": reference, "references": None}
        (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (one, rows[1])))
        single.append(best_of_n_files(["length", "tfidf"], [tmp_path / "one.jsonl"], baselines=()).scores["tfidf"].values)
    assert values[:3].argmax() in (0, 2) and values[1] == pytest.approx(0, abs=1e-6)
    assert values[3:] == pytest.approx(single[0][3:], abs=0.3)
    (tmp_path / "bad.jsonl").write_text(json.dumps({**rows[0], "references": ["aa", ""]}) + "\n")
    with pytest.raises(BadRow, match=r"bad.jsonl: row 1: field 'references\[1\]'"):
        best_of_n_files(["tfidf"], [tmp_path / "bad.jsonl"], baselines=())
