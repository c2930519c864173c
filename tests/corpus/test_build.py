"""`polar corpus` as a user runs it: from trajectory files to shards, report and manifest."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from polar_rm.cli import app
from polar_rm.corpus.build import build
from polar_rm.corpus.config import CorpusConfig
from polar_rm.errors import PolarError
from polar_rm.records import Trajectory, read_comparisons, write_records


@pytest.fixture
def trajectories(tmp_path):
    rows = [
        Trajectory("s", f"p{p}", f"Question {p}?", policy, i, f"{policy} says answer {i} to {p}. " * (1 + len(policy)))
        for p in range(40)
        for policy in ("a", "bb", "ccc", "dddd")
        for i in range(3)
    ]
    write_records(tmp_path / "t.parquet", rows)
    write_records(tmp_path / "reversed.parquet", rows[::-1])
    return tmp_path


def config(folder, name: str, source: str = "t.parquet", **options) -> CorpusConfig:
    values = {"inputs": [str(folder / source)], "output": folder / name, "buckets": 3, "workers": 1, "report": {"pairs": 50}}
    return CorpusConfig.model_validate(values | options)


def shards(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def test_equal_input_and_seed_give_equal_bytes(trajectories):
    build(config(trajectories, "one"))
    build(config(trajectories, "two", workers=2))
    build(config(trajectories, "other", seed=1))
    assert shards(trajectories / "one") == shards(trajectories / "two")
    assert shards(trajectories / "one") != shards(trajectories / "other")


def test_the_order_of_rows_changes_no_comparison(trajectories):
    build(config(trajectories, "one"))
    build(config(trajectories, "two", "reversed.parquet"))
    found = [sorted(map(repr, read_comparisons(trajectories / name / "train"))) for name in ("one", "two")]
    assert found[0] == found[1]


def test_pairs_are_of_the_references_policy_and_no_other(trajectories):
    build(config(trajectories, "out", pairing={"positives": 2, "negatives": 2}, splits={"prompts": 0.3}))
    trained = list(read_comparisons(trajectories / "out" / "train"))
    held = list(read_comparisons(trajectories / "out" / "unseen_prompts"))
    assert trained
    assert held
    assert not {c.prompt for c in trained} & {c.prompt for c in held}
    for comparison in trained + held:
        author = comparison.reference.split()[0]
        for candidate, rank in zip(comparison.candidates, comparison.ranks, strict=True):
            assert (candidate.split()[0] == author) == (rank == 0)
            assert candidate != comparison.reference
    report = json.loads((trajectories / "out" / "report.json").read_text())
    manifest = json.loads((trajectories / "out" / "manifest.json").read_text())
    assert report
    assert manifest
    assert "<html" in (trajectories / "out" / "report.html").read_text()


def test_evaluation_prompts_are_left_out(trajectories):
    (trajectories / "bench.jsonl").write_text(json.dumps({"prompt": "Question 7?"}) + "\n")
    build(config(trajectories, "out", decontamination={"files": [str(trajectories / "bench.jsonl")]}))
    assert "Question 7?" not in {c.prompt for c in read_comparisons(trajectories / "out" / "train")}
    assert "Question 7?" in (trajectories / "out" / "contaminated.jsonl").read_text()


def test_other_settings_in_the_same_folder_are_refused(trajectories):
    build(config(trajectories, "out"))
    with pytest.raises(PolarError, match="seed"):
        build(config(trajectories, "out", seed=5))


def test_one_policy_gives_one_clear_line(trajectories):
    rows = [Trajectory("s", "p", "Q?", "only", i, f"text {i}") for i in range(3)]
    write_records(trajectories / "single.parquet", rows)
    with pytest.raises(PolarError) as caught:
        build(config(trajectories, "out", "single.parquet"))
    assert "\n" not in str(caught.value)


def test_the_verb_plans_and_builds(trajectories):
    arguments = ["corpus", f"inputs=[{trajectories / 't.parquet'}]", f"output={trajectories / 'cli'}", "workers=1"]
    assert CliRunner().invoke(app, [*arguments, "--dry-run"]).exit_code == 0
    assert not (trajectories / "cli" / "train").exists()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert list(read_comparisons(trajectories / "cli" / "train"))
