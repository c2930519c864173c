import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support import tiny
from support.full_disks import full_after

from polar_rm.errors import MachineFailure, PolarError, ScoreError
from polar_rm.model.packing import pack
from polar_rm.records import Comparison, OnBadRow, ScoreItem, write_records
from polar_rm.rewards.scale import Scale
from polar_rm.scoring import files
from polar_rm.scoring import scorer as scorer_module
from polar_rm.scoring.files import score_file
from polar_rm.scoring.scorer import Scorer

WORDS = "the quick brown fox jumps over a lazy dog near the river bank".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.reward_model(tmp_path_factory.mktemp("lm"))


def items(n=40, seed=0):
    rng = random.Random(seed)

    def text():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))

    groups = [(text(), text()) for _ in range(6)]
    return [ScoreItem(*rng.choice(groups), text(), metadata={"n": i}) for i in range(n)]


def one_by_one(model, some):
    return [Scorer(model).score_outputs(prompt=i.prompt, reference=i.reference, outputs=[i.output])[0] for i in some]


@pytest.mark.parametrize(("row_tokens", "window"), [(8192, 1024), (60, 1024), (200, 7)])
def test_scores_are_in_input_order_with_any_grouping(model, row_tokens, window):
    some = items()
    scored = list(Scorer(model, row_tokens=row_tokens, window=window).score(iter(some)))
    assert [s.reward for s in scored] == pytest.approx(one_by_one(model, some), abs=2e-5)
    assert len({round(s.reward, 3) for s in scored}) > 30


def test_comparisons_score_like_their_candidates(model):
    some = [Comparison("p", "the fox", ("a dog", "the river", "a bank"), (0, 1, 1)), Comparison("q", "", ("x", "y"), (1, 0))]
    together = list(Scorer(model, row_tokens=30).score_comparisons(some))
    for comparison, scores in zip(some, together, strict=True):
        alone = [ScoreItem(comparison.prompt, comparison.reference, c) for c in comparison.candidates]
        assert scores == pytest.approx(one_by_one(model, alone), abs=2e-5)


def test_candidates_of_equal_ids_are_tied_at_any_position(tmp_path):
    settings = tiny.EncoderSettings(max_length=60, max_response_length=10)
    scorer = Scorer(tiny.reward_model(tmp_path, settings=settings), row_tokens=60)
    cut = tuple("lazy dog " * 30 + word for word in WORDS)  # what differs is cut off
    special = ("the fox", "<|reward|>the fox", "a dog")
    some = [Comparison("p", "r", cut, tuple(range(len(cut)))), Comparison("p", "r", special, (0, 1, 1))]
    first, second = scorer.score_comparisons(some)
    assert len(set(first)) == 1 and len(first) == len(cut)
    assert second[0] == second[1] != second[2]
    assert (scorer.noted["truncated"], scorer.noted["tied"]) == (1, 2)
    _, rewards = scorer.reward_comparisons(some)
    assert ["tied" in reward.notes for reward in rewards] == [True, True, False]


def test_truncation_and_lengths_are_reported(tmp_path):
    settings = tiny.EncoderSettings(max_length=40, max_response_length=10)
    model = tiny.reward_model(tmp_path, settings=settings)
    short, long = Scorer(model).score([ScoreItem("p", "fox", "dog"), ScoreItem("p", "fox", "lazy dog " * 30)])
    assert (short.truncated, long.truncated) == (False, True)
    assert short.n_tokens < long.n_tokens <= 40


@pytest.mark.parametrize(
    ("item", "truncated"),
    [
        (ScoreItem("lazy dog " * 30, "fox", "dog"), (True, False, False)),
        (ScoreItem("p", "lazy dog " * 30, "dog"), (False, True, False)),
        (ScoreItem("p", "fox", "lazy dog " * 30), (False, False, True)),
    ],
)
def test_truncation_of_any_text_is_reported(tmp_path, item, truncated):
    """sco-4."""
    model = tiny.reward_model(tmp_path, settings=tiny.EncoderSettings(max_length=40, max_response_length=10))
    [reward] = Scorer(model).score([item])
    assert (reward.cut.prompt > 0, reward.cut.reference > 0, reward.cut.output > 0) == truncated
    assert reward.truncated and reward.notes == ("truncated",)


def test_candidates_of_equal_ids_reach_the_model_once(model, monkeypatch):
    """sco-3."""
    seen = []
    monkeypatch.setattr(scorer_module, "pack", lambda trees: seen.extend(trees) or pack(trees))
    outputs = ["the fox", *("<|reward|>the fox" for _ in range(12))]
    rewards = Scorer(model).score_outputs(prompt="p", reference="r", outputs=outputs)
    assert len(set(rewards)) == 1
    assert sum(len(tree.branches) for tree in seen if len(tree.prefix) > 1) == 1  # beside what fills the row


def test_a_score_does_not_depend_on_the_other_items(model):
    """B8 from the other side: alone, in any batch, at any position. Bit-equal where it was measured; elsewhere within a bound."""
    rng = random.Random(1)

    def text():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))

    candidates = [[text() for _ in range(rng.choice((1, 1, 2, 3, 9)))] for _ in range(30)]
    trees = model.encoder.encode_many([Comparison(text(), text(), (*some, "end"), (0,) * (len(some) + 1)) for some in candidates])
    scorer = Scorer(model)
    alone = [scorer.score_trees([tree])[0] for tree in trees]
    order = rng.sample(range(30), 30)
    shuffled = scorer.score_trees([trees[i] for i in order])
    for together in (scorer.score_trees(trees), [shuffled[order.index(i)] for i in range(30)], scorer.score_trees(trees[:11])):
        for expected, scores in zip(alone, together, strict=False):
            assert expected == pytest.approx(scores, abs=1e-4)
            if torch.backends.cpu.get_cpu_capability() == "AVX2":
                assert expected == scores


@pytest.mark.parametrize("wrapper", ["sft", "pretrain"])
def test_a_score_does_not_depend_on_its_group(model, wrapper):
    """F15: alone, with outputs of equal beginnings, and in another window (as after a resume)."""
    rng = random.Random(2)

    def text(max_words=30):
        return " ".join(rng.choices(WORDS, k=rng.randint(1, max_words)))

    items = []
    for _ in range(12):
        prompt, reference, start = text(), text(), text()
        outputs = [text(), "", "\n" + text(), *(f"{start} {text(3)}" for _ in range(rng.randint(1, 6)))]
        items += [ScoreItem(prompt, reference, output, wrapper) for output in outputs]
    together = [reward.reward for reward in Scorer(model).score(items)]
    for window in (1, 2, 7):
        for reward, expected in zip(Scorer(model, window=window).score(items), together, strict=True):
            assert reward.reward == pytest.approx(expected, abs=1e-4)
            if torch.backends.cpu.get_cpu_capability() == "AVX2":
                assert reward.reward == expected


def test_each_score_has_its_notes_and_they_are_counted(tmp_path):
    """H8."""
    model = tiny.reward_model(tmp_path, settings=tiny.EncoderSettings(max_length=3000, max_response_length=700))
    long = ScoreItem("the fox " * 600, "fox", "dog")  # 2,048 positions
    items = [long, ScoreItem("p", "r", " "), ScoreItem("p", "r", "<think>so"), ScoreItem("p", "r", "a dog")]
    scorer = Scorer(model)
    notes = [reward.notes for reward in scorer.score(items)]
    assert notes == [("beyond_positions",), ("empty",), ("unfinished_thinking",), ()]
    assert scorer.noted == {"beyond_positions": 1, "empty": 1, "unfinished_thinking": 1}
    write_records(tmp_path / "items.jsonl", items)
    with pytest.warns(UserWarning, match="1 items are longer than the backbone's positions"):
        run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [tuple(row["notes"]) for row in rows] == notes
    comparison = Comparison("the fox " * 600, "fox", ("dog", "<think>x"), (0, 1))
    list(scorer.score_comparisons([comparison, comparison]))
    assert (scorer.noted["beyond_positions"], scorer.noted["unfinished_thinking"]) == (3, 3)


def test_a_model_is_left_in_the_mode_that_it_had(tmp_path):
    """B21."""
    model = tiny.reward_model(tmp_path)
    model.train()
    model.backbone.model.layers[0].eval()  # somebody froze it
    before = {name: module.training for name, module in model.named_modules()}
    scorer = Scorer(model)
    assert scorer.score_outputs(prompt="p", reference="r", outputs=["a"])
    assert {name: module.training for name, module in model.named_modules()} == before
    seen = []
    model.backbone.model.layers[1].register_forward_pre_hook(lambda module, args: seen.append(model.training))
    scorer.score_outputs(prompt="p", reference="r", outputs=["a"])
    assert seen == [False]


def test_a_score_that_is_not_finite_is_an_error(tmp_path):
    model = tiny.reward_model(tmp_path)
    model.backbone.score.weight.data.fill_(float("inf"))
    with pytest.raises(ScoreError, match="item 1 "):
        list(Scorer(model).score(items(3)))


def test_an_item_without_a_reference_to_compare_with_is_named_in_whatever_window(model):
    some = items(9)
    some[6] = ScoreItem("p", "", "o")
    with pytest.raises(PolarError, match="^item 7: "):
        list(Scorer(model, window=4).score(some, anchored=True))


def run(model, source, target, **options):
    return list(score_file(model, source, target, identity={"model": "m"}, **options))


def test_files_are_scored_row_by_row(model, tmp_path):
    some = items()
    write_records(tmp_path / "items.jsonl", some)
    assert run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")[-1] == 40
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, 41))
    assert [row["metadata"]["n"] for row in rows] == list(range(40))
    assert [row["reward"] for row in rows] == pytest.approx(one_by_one(model, some), abs=2e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items.jsonl", "scores.jsonl"]


def test_a_row_without_a_score_is_named_and_the_rows_before_it_are_kept(model, tmp_path, monkeypatch):
    rows = [{"prompt": "p", "reference": "r", "output": f"fox {i}"} for i in range(30)]
    (tmp_path / "items.jsonl").write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(files, "WINDOW", 8)
    score_trees, seen = Scorer.score_trees, []

    def broken(self, trees):
        scores = score_trees(self, trees)
        seen.append(len(scores[0]))
        if len(seen) == 3:
            scores[0][4] = float("inf")
        return scores

    monkeypatch.setattr(Scorer, "score_trees", broken)
    with pytest.raises(ScoreError, match=r"items.jsonl: row 22 has the score inf"):
        run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")
    assert len((tmp_path / "scores.jsonl.partial").read_text().splitlines()) == 20


def test_scores_are_written_only_to_jsonl_files(model, tmp_path):
    write_records(tmp_path / "items.jsonl", items(3))
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "items.jsonl")
    for source, target, reason in (
        ("items.jsonl", "items.jsonl", "the input itself"),
        ("items.jsonl", "link.jsonl", "the input itself"),
        ("items.jsonl", "folder.jsonl", "it is a folder"),
        ("items.jsonl", "scores.jsonl.gz", "known: .jsonl"),
        ("items.jsonl", "items.jsonl/scores.jsonl", "is not a folder"),
        (".", "scores.jsonl", "each gets a file of scores"),
    ):
        with pytest.raises(PolarError, match=reason):
            run(model, tmp_path / source, tmp_path / target)
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 3


def test_metadata_is_written_as_standard_json(model, tmp_path):
    item = {"prompt": "p", "reference": "r", "output": "o", "at": {"x": float("nan")}, "y": float("inf")}
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
    run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads((tmp_path / "scores.jsonl").read_text(), parse_constant=refuse)["metadata"] == {
        "at": {"x": None},
        "y": "inf",
    }


def test_an_interrupted_file_continues_after_its_last_complete_row(model, tmp_path, monkeypatch):
    write_records(tmp_path / "items.jsonl", items())
    monkeypatch.setattr(files, "WINDOW", 8)
    run(model, tmp_path / "items.jsonl", tmp_path / "whole.jsonl")
    steps = score_file(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl", identity={"model": "m"})
    while next(steps) < 16:
        pass
    steps.close()
    partial = tmp_path / "scores.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 16
    with partial.open("a") as file:
        file.write('{"row": 17, "rew')
    state = tmp_path / "scores.jsonl.partial.json"
    identity = state.read_text()
    state.write_text("")
    with pytest.raises(PolarError, match="not JSON"):
        run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")
    state.write_text(identity)
    with pytest.raises(PolarError, match="another model"):
        list(score_file(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl", identity={"model": "other"}))
    calls = watch(monkeypatch)
    assert run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl") == [8, 16, 24, 32, 40]
    assert sum(calls) == 40 - 16
    assert (tmp_path / "scores.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are found in /proc")
def test_a_run_that_failed_before_its_first_row_binds_nothing(model, tmp_path):
    source, target = tmp_path / "items.jsonl", tmp_path / "scores.jsonl"
    source.write_text('{"prompt": "p", "refrence": "r", "output": "o"}\n')
    with pytest.raises(PolarError, match="reference"):
        list(score_file(model, source, target, identity={"input": "wrong"}, transform="anchored", scale=Scale()))
    source.write_text('{"prompt": "p", "reference": "r", "output": "o"}\n')
    assert list(score_file(model, source, target, identity={"input": "mended"})) == [1]


def test_rows_are_on_the_disk_before_they_count_and_so_is_the_name(model, tmp_path, monkeypatch):
    """A power cut must not take back what was reported as written."""
    write_records(tmp_path / "items.jsonl", items())
    monkeypatch.setattr(files, "WINDOW", 8)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
    for done in score_file(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl", identity={"model": "m"}):
        assert synced.count("scores.jsonl.partial") == done // 8
    assert synced[-1] == tmp_path.name


def watch(monkeypatch) -> list[int]:
    """Items of every window that is scored from now on."""
    scored, score_window = [], Scorer.score_window
    monkeypatch.setattr(Scorer, "score_window", lambda self, *a, **o: (scored.append(len(a[0])), score_window(self, *a, **o))[1])
    return scored


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda lines: lines[:5] + lines[6:], 0),
        (lambda lines: lines[:20] + lines[21:], 16),
        (lambda lines: lines[:24] + [lines[23]] + lines[24:], 24),
        (lambda lines: lines[:30] + ["\0" * 200], 24),
        (lambda lines: lines[:30] + ['{"row": 31, "reward": null}\n'], 24),
        (lambda lines: [*lines[:30], '{"row": 31, "reward": NaN}\n', *lines[31:]], 24),
        (lambda lines: lines[:29], 24),
        (lambda lines: [*lines, lines[-1]], 40),
    ],
    ids=["lost", "lost later", "doubled", "zeros", "no reward", "no number", "within a window", "behind the end"],
)
def test_a_damaged_partial_result_is_continued_after_its_last_complete_row(model, tmp_path, monkeypatch, damage, kept):
    """F1, F15: not by a count of lines; and with the bytes of an uninterrupted run."""
    write_records(tmp_path / "items.jsonl", items())
    monkeypatch.setattr(files, "WINDOW", 8)
    run(model, tmp_path / "items.jsonl", tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_text()
    (tmp_path / "scores.jsonl.partial").write_text("".join(damage(whole.splitlines(keepends=True))))
    (tmp_path / "scores.jsonl.partial.json").write_text('{"model": "m"}')
    calls = watch(monkeypatch)
    run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")
    assert sum(calls) == 40 - kept
    assert (tmp_path / "scores.jsonl").read_text() == whole


def test_a_full_disk_is_reported_with_the_file_and_the_same_call_continues(model, tmp_path, monkeypatch):
    """F13."""
    write_records(tmp_path / "items.jsonl", items())
    monkeypatch.setattr(files, "WINDOW", 8)
    run(model, tmp_path / "items.jsonl", tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    with (
        full_after(len(b"".join(lines[:20]))),
        pytest.raises(
            MachineFailure, match=r"scores.jsonl.partial: could not be written: .*File too large.* and the same command"
        ),
    ):
        run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")
    assert (tmp_path / "scores.jsonl.partial").read_bytes().startswith(b"".join(lines[:16]))
    calls = watch(monkeypatch)
    run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")
    assert sum(calls) == 40 - 16
    assert (tmp_path / "scores.jsonl").read_bytes() == whole


def test_a_second_run_on_one_output_is_refused(model, tmp_path):
    """F1, H2: every row came twice, with exit code 0."""
    write_records(tmp_path / "items.jsonl", items())
    first = score_file(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl", identity={"model": "m"})
    next(first)
    before = sorted(path.name for path in tmp_path.iterdir())
    with (
        ThreadPoolExecutor(1) as other,
        pytest.raises(PolarError, match=r"scores.jsonl: in use by polar score on"),
    ):
        other.submit(run, model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl").result()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert list(first) == []
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 40


def test_skipped_rows_leave_gaps_in_the_numbers(model, tmp_path):
    good = {"prompt": "p", "reference": "r", "output": "o"}
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (good, {"prompt": "p"}, good)))
    with pytest.raises(PolarError, match="row 2: field 'reference'"):
        run(model, tmp_path / "items.jsonl", tmp_path / "scores.jsonl")
    bad = OnBadRow("skip", tmp_path / "side.jsonl")
    run(model, tmp_path / "items.jsonl", tmp_path / "out.jsonl", on_bad_row=bad)
    assert [json.loads(line)["row"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1, 3]
    assert bad.count == 1


def test_scoring_keeps_no_graph(model):
    assert not torch.is_tensor(next(iter(Scorer(model).score(items(1)))).reward)
