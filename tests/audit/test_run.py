"""Whole audits: planted shortcuts fail and honest scorers pass; the content of the report; refused arguments."""

import json
import weakref
from dataclasses import replace

import pytest
from support import shortcuts

from polar_rm.audit.page import examples, write_page, write_plot
from polar_rm.audit.report import findings_table, sentences
from polar_rm.audit.run import audit, audit_files
from polar_rm.audit.texts import half
from polar_rm.audit.thresholds import Thresholds
from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation.contenders import Given
from polar_rm.evaluation.contenders.baselines import Length
from polar_rm.evaluation.contenders.stored import Stored
from polar_rm.evaluation.pairs import NotedScores
from polar_rm.records import Comparison, OnBadRow

DATA = shortcuts.comparisons(40)


def failed(report):
    return {each["probe"] for each in report["findings"] if each["verdict"] == "failed"}


def oracle(**changes):
    contender = shortcuts.contender("oracle", shortcuts.oracle)
    for name, value in changes.items():
        setattr(contender, name, value)
    return contender


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_planted_shortcuts_fail_and_honest_scorers_do_not(seed):
    """``benchmarks/audit.py`` measures the rates over twenty seeds."""
    data = shortcuts.comparisons(200 if seed else 150, seed)
    for name, contender in shortcuts.honest(data, seed).items():
        report = audit(contender, data, seed=seed, resamples=200).report
        assert failed(report) <= shortcuts.WEAKNESSES.get(name, set()), (name, report["findings"])
        assert failed(report) or report["verdict"] != "failed"
    for name, (contender, probe) in shortcuts.planted(data, seed).items():
        report = audit(contender, data, seed=seed, resamples=200).report
        assert probe in failed(report), (name, report["findings"])
        assert report["verdict"] == "failed"


def test_the_report_is_complete_and_does_not_depend_on_the_order_of_calls():
    items = [replace(each, metadata={**each.metadata, "reference_protocol": "gold"}) for each in DATA[:30]] + DATA[30:]
    items[3] = replace(items[3], reference=items[3].candidates[0])
    seen = []
    result = audit(
        oracle(), items, resamples=50, progress=lambda task, done, total, status="": seen.append((task, done, total, status))
    )
    report = result.report
    assert json.loads(json.dumps(report)) == report
    assert (report["schema"], report["contender"], report["kind"]) == ("polar-rm/audit/1", "oracle", "object")
    assert (report["n_comparisons"], report["n_pairs"], report["n_prompts"]) == (40, 40, 40)
    assert report["references"] == {"gold": 30, "given": 10}
    assert report["warnings"] == [
        "1 comparisons have a reference that is equal, or nearly, to one of their candidates; the first is comparison 4"
    ]
    assert report["thresholds"] == Thresholds().model_dump()
    assert [done for _, done, _, _ in seen] == list(range(1, 7 * 40 + 1))
    assert {(task, total) for task, _, total, _ in seen} == {("oracle", 280)}
    assert list(dict.fromkeys(status for *_, status in seen)) == [
        "given", "empty", "shuffled", "swapped", "plain", "other_prompt", "altered"
    ]  # fmt: skip
    assert audit(oracle(), items, resamples=50).report == report
    noisy = shortcuts.contender("m", lambda p, r, c: shortcuts.noise(0, p, r, c))
    first, second = (audit(noisy, items, resamples=50, seed=seed).report["findings"] for seed in (0, 1))
    assert first != second


def test_thresholds_determine_the_verdicts():
    strict = Thresholds(gain=0.9, pasted=-0.5, prompts=10)
    report = audit(oracle(), DATA, thresholds=strict, resamples=50).report
    assert failed(report) == {"gain", "pasted"}
    assert {each["probe"]: each["threshold"] for each in report["findings"]}["gain"] == 0.9
    assert failed(audit(oracle(), DATA, resamples=50).report) == set()


def test_without_references_the_probes_of_references_are_left_out():
    blank = [replace(each, reference=None) for each in DATA]
    with pytest.raises(
        PolarError, match=r"40 of 40 comparisons have no reference, the first is comparison 1 \(.*\); --reference empty"
    ):
        audit(oracle(), blank)
    references = []

    def score(prompt, reference, candidate):
        references.append(reference)
        return len(candidate)

    report = audit(shortcuts.contender("m", score), blank, use_references=False, resamples=50).report
    assert set(references) == {""}
    assert report["references"] == {} and not report["takes_reference"]
    assert audit(Length(), blank, resamples=50).report["takes_reference"] is False  # it needs none


def test_everything_is_checked_before_a_contender_is_loaded():
    loaded = []
    light = oracle(load=lambda: loaded.append(1))
    for items, message in (
        ([], "no comparisons"),
        (DATA[:1], "between at least two prompts"),
        ([replace(each, ranks=(0, 0)) for each in DATA], "none of 40 comparisons has two candidates of different rank"),
        ([*DATA, replace(DATA[0], reference=None)], "1 of 41 comparisons have no reference, the first is comparison 41"),
        (iter(DATA), "read several times"),
    ):
        with pytest.raises(PolarError, match=message):
            audit(light, items)
    with pytest.raises(PolarError, match="stored scores belong to unchanged texts"):
        audit(Stored("old", "scores.jsonl"), DATA)
    assert loaded == []


def test_a_score_that_is_not_finite_names_the_comparison_and_the_stream():
    def score(prompt, reference, candidate):
        return float("nan") if not candidate else 1.0

    with pytest.raises(ScoreError, match=r"m: comparison 1 has the scores .* \(altered\)"):
        audit(shortcuts.contender("m", score), DATA)


def test_a_contender_is_loaded_once_and_freed():
    log = []

    class Weights(Given):
        has_weights = True

        def load(self):
            log.append("load")
            scorer = shortcuts.Plain(shortcuts.oracle)
            self.held = weakref.ref(scorer)
            return scorer

        def release(self):
            assert self.held() is None
            log.append("release")

    audit(Weights("m", None), DATA, resamples=10)
    assert log == ["load", "release"]


def test_only_a_window_of_comparisons_is_held(monkeypatch):
    monkeypatch.setattr("polar_rm.evaluation.references._SHUFFLE_WINDOW", 32)
    alive = peak = 0

    class Counted(Comparison):
        __slots__ = ("__weakref__",)

        def __del__(self):
            nonlocal alive
            alive -= 1

    class Stream:
        def __iter__(self):
            nonlocal alive, peak
            for each in DATA * 10:
                alive += 1
                peak = max(peak, alive)
                yield Counted(each.prompt, each.reference, each.candidates, each.ranks, each.wrapper, each.metadata)

    audit(shortcuts.contender("m", lambda p, r, c: len(c)), Stream(), resamples=10)
    assert peak <= 3 * 32 + 8


def test_messages_are_altered_and_scored_as_messages():
    def messages(text):
        return [{"role": "assistant", "content": "Let me see."}, {"role": "assistant", "content": text}]

    items = [replace(each, candidates=tuple(map(messages, each.candidates)), reference=messages(each.reference)) for each in DATA]

    class Reads:
        def score_comparisons(self, comparisons):
            for each in comparisons:
                texts = [candidate[-1]["content"] if isinstance(candidate, list) else candidate for candidate in each.candidates]
                reference = each.reference[-1]["content"] if each.reference else ""
                yield [shortcuts.oracle("", reference, text) for text in texts]

    plain = audit(oracle(), DATA, resamples=20).report["findings"]
    assert [each["value"] for each in audit(Reads(), items, resamples=20).report["findings"]] == pytest.approx(
        [each["value"] for each in plain], abs=0.15
    )


def test_files_limits_and_bad_rows(tmp_path):
    rows = [
        {"prompt": each.prompt, "reference": each.reference, "candidates": each.candidates, "ranks": each.ranks} for each in DATA
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "p"}]))
    with pytest.raises(PolarError, match="row 41: field 'candidates'"):
        audit_files(oracle(), [file])
    bad = OnBadRow("skip", tmp_path / "side")
    report = audit_files(oracle(), [file], on_bad_row=bad).report
    assert (report["n_comparisons"], report["limit"]) == (40, None)
    assert report["data"][0]["rows"] == 40 and report["warnings"][-1].startswith("1 bad rows were skipped")
    some = audit_files(oracle(), [file], limit=25).report
    assert (some["n_comparisons"], some["limit"]) == (25, 25)
    assert "the first 25 comparisons only" in findings_table(some).title
    with pytest.raises(PolarError, match="limit must be at least 1, not 0"):
        audit_files(oracle(), [file], limit=0)
    with pytest.raises(PolarError, match="this run writes this file"):
        audit_files(oracle(), [file], outputs=[file])
    references = tmp_path / "references.jsonl"
    references.write_text("".join(json.dumps({"prompt": each.prompt, "reference": "x y"}) + "\n" for each in DATA))
    assert audit_files(oracle(), [file], references=references, limit=25).report["fingerprint"] == some["fingerprint"]


@pytest.mark.plots
def test_table_sentences_page_and_plot(tmp_path):
    data = shortcuts.comparisons(120)
    result = audit(shortcuts.contender("short & <sweet>", lambda p, r, c: -len(c)), data, resamples=100)
    table = findings_table(result.report)
    assert table.title == "short & <sweet>: failed (120 pairs of 120 prompts)"
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["halved"] == ["0.000", "[0.000, 0.031]", "≥ 0.6", "failed"]
    assert rows["injected"][2] == "≤ 0.1"
    lines = sentences(result.report)
    assert any(line.startswith("failed: halved: it does not notice that half of an answer is missing (+0.000") for line in lines)
    assert [line.partition(":")[0] for line in lines] == sorted(
        (line.partition(":")[0] for line in lines), key=["failed", "noted", "undecided", "not applicable"].index
    )
    shown = examples(result)
    assert [len(rows) for rows in shown.values()] == [3] * len(shown) and "halved" in shown
    first = shown["halved"][0]
    sides = {side["name"]: side for side in first["sides"]}
    assert sides["better"]["score"] == -len(sides["better"]["text"]) < sides["halved"]["score"] == -len(sides["halved"]["text"])
    best = [each.candidates[each.ranks.index(0)] for each in data]
    assert len(sides["better"]["text"]) - len(sides["halved"]["text"]) == max(len(text) - len(half(text)) for text in best)
    write_page(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    assert "short &amp; &lt;sweet&gt;" in page and "<svg" in page and "http" not in page.partition("<svg")[0]
    assert sides["better"]["text"].split("\n")[0][:40] in page
    write_plot(tmp_path / "plot.svg", result.report)
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(label in drawn for label in ("halved ≥ 0.6", "threshold", "failed"))


def test_altered_answers_that_an_encoder_makes_equal_are_left_out():
    """The encoder of this scorer keeps 300 characters, so a repeated end or a plea may be truncated."""

    class Cut:
        def score_comparisons(self, comparisons):
            for each in comparisons:
                kept = [text[:300] for text in each.candidates]
                notes = [("tied",) if kept.count(text) > 1 else () for text in kept]
                yield NotedScores([shortcuts.cosine(each.reference, text) for text in kept], notes)

    result = audit(Cut(), DATA, thresholds=Thresholds(prompts=1), resamples=10)
    n_pairs = {each["probe"]: each["n_pairs"] for each in result.report["findings"]}
    best, worst = ([each.candidates[each.ranks.index(rank)] for each in DATA] for rank in (0, 1))
    assert 5 < n_pairs["looped"] < 35 and 5 < n_pairs["injected"] < 35
    assert n_pairs["looped"] == sum(len(text) < 300 for text in best)
    assert n_pairs["injected"] == sum(len(text) < 300 for text in worst)
    assert n_pairs["halved"] == sum(half(text) != text[:300] and len(half(text)) < 300 for text in best)
    assert n_pairs["pasted"] == n_pairs["empty"] == 40
    assert any("altered answers were left out: the encoder truncates them" in line for line in result.report["warnings"])
