"""``polar select`` from files to files: forms of input, rows that are written, refusals, resumption, reports."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tiny
from support.commands import in_process, refused
from support.owners import owned_elsewhere

from polar_rm.common.config import load_config
from polar_rm.common.manifests import check_manifest
from polar_rm.errors import Damaged, PolarError
from polar_rm.records import find_files
from polar_rm.rewards.calibration import Calibration
from polar_rm.selection import parts, scoring
from polar_rm.selection.config import SelectConfig
from polar_rm.selection.run import plan, select


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder, **changes):
    values = {"output": folder / "out", "inputs": [str(folder / "in.jsonl")]}
    return SelectConfig.model_validate(values | changes)


def run(folder, rows=None, **changes):
    if rows is not None:
        write(folder / "in.jsonl", rows)
    return read(select(config(folder, **changes)).path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(prompt, output, score, **more):
    return {"prompt": prompt, "output": output, "score": score, **more}


def many(count=300, seed=0):
    """Rows with ties, copies and groups; answers of a few words."""
    rng = random.Random(seed)
    words = "red green blue fox".split()
    return [
        row(
            f"p{rng.randrange(40)}", " ".join(rng.choices(words, k=rng.randint(2, 6))), rng.randrange(5), source=rng.choice("abc")
        )
        for _ in range(count)
    ]


USER, ANSWER = {"role": "user", "content": "p"}, {"role": "assistant", "content": "good"}


def test_sft_rows_are_messages_of_prompt_and_answer(tmp_path):
    rows = [row("p", "bad", 1), row("p", "good", 2, policy="a", n=3)]
    assert run(tmp_path, rows, best_of_n=1) == [{"messages": [USER, ANSWER], "score": 2.0}]
    kept = run(tmp_path, best_of_n=1, keep_columns="all", output=tmp_path / "all")
    assert kept[0]["metadata"] == {"policy": "a", "n": 3}
    system = [{"role": "system", "content": "s"}, USER]
    rows = [{"prompt": system, "output": [ANSWER], "reward": 2, "a": 1, "b": 2}]
    kept = run(tmp_path, rows, keep_columns=["b"], output=tmp_path / "named")
    assert kept == [{"messages": [*system, ANSWER], "score": 2.0, "metadata": {"b": 2}}]


def test_pairs_have_trls_explicit_prompt_and_conversations(tmp_path):
    rows = [row("p", "worse", 1), row("p", "good", 2, n=1), row("p", "worst", 0, n=2), row("q", "alone", 5)]
    [pair] = run(tmp_path, rows, kind="pairs", keep_columns="all")
    rejected = {"role": "assistant", "content": "worst"}
    scores = {"score_chosen": 2.0, "score_rejected": 0.0}
    assert pair == {"prompt": [USER], "chosen": [ANSWER], "rejected": [rejected], **scores, "metadata": {"n": 1}}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["counts"]["selected"] == 1
    assert [rule["dropped"] for rule in report["rules"] if rule["rule"] == "partner"] == [1]


def test_all_forms_of_scored_rows_are_read(tmp_path):
    rows = [
        {"prompt": "p", "outputs": ["a", "good"], "scores": [1, 2], "prompt_id": "1"},
        {"source": "s", "prompt_id": "1", "prompt": "p", "policy": "x", "sample_id": 0, "text": "b", "score": 0.5},
        row("p", "c", True, prompt_id=1),
    ]
    selected = run(tmp_path, rows, best_of_n=4)
    assert {each["messages"][1]["content"]: each["score"] for each in selected} == {"a": 1.0, "good": 2.0, "b": 0.5, "c": 1.0}
    assert [each["score"] for each in run(tmp_path, rows, best_of_n=1, output=tmp_path / "one")] == [2.0]


def test_tables_hold_messages_as_text(tmp_path):
    prompt = json.dumps([USER])
    table = pa.table({"prompt": [prompt, prompt], "output": ["good", "bad"], "rating": [2.0, 1.0], "meta": ['{"a": 1}', None]})
    pq.write_table(table, tmp_path / "in.parquet")
    inputs = [str(tmp_path / "in.parquet")]
    assert run(tmp_path, inputs=inputs, score="rating", best_of_n=1) == [{"messages": [USER, ANSWER], "score": 2.0}]


def test_the_order_of_files_and_rows_decides_nothing(tmp_path):
    rows = many()
    rules = {"best_of_n": 2, "top_share": 0.5, "group_by": "source", "quotas": {"at_most": 7}, "near_duplicates": {}}
    expected = run(tmp_path, rows, **rules)
    random.Random(1).shuffle(rows)
    (tmp_path / "parts").mkdir()
    for number in range(3):
        write(tmp_path / f"parts/{number}.jsonl", rows[number::3])
    other = run(tmp_path, inputs=[str(tmp_path / "parts")], output=tmp_path / "other", **rules)
    assert len(expected) == 21
    assert sorted(map(json.dumps, other)) == sorted(map(json.dumps, expected))
    pairs = {"kind": "pairs", "pairs": {"rejected": "random"}, "best_of_n": 2}
    expected = run(tmp_path, **pairs, output=tmp_path / "pairs")
    other = run(tmp_path, inputs=[str(tmp_path / "parts")], output=tmp_path / "others", **pairs)
    assert sorted(map(json.dumps, other)) == sorted(map(json.dumps, expected))


def test_a_brute_force_over_the_texts_gives_the_same_report(tmp_path):
    rows = many()
    report = select(config(write(tmp_path / "in.jsonl", rows).parent, length={"min": 15}, threshold={"at_least": 2})).report
    distinct = {}
    for each in rows:
        key = each["prompt"], each["output"]
        distinct[key] = max(distinct.get(key, -1), each["score"])
    long = {key: score for key, score in distinct.items() if len(key[1]) >= 15}
    left = [score for score in long.values() if score >= 2]
    dropped = [len(rows) - len(distinct), len(distinct) - len(long), len(long) - len(left)]
    assert [each["rule"] for each in report["rules"]] == ["copies", "length", "threshold"]
    assert [each["dropped"] for each in report["rules"]] == dropped
    assert min(dropped) > 0
    assert report["counts"]["selected"] == report["scores"]["selected"]["n"] == len(left)
    assert report["scores"]["selected"]["mean"] == pytest.approx(np.mean(left))
    assert report["scores"]["all"]["quantiles"]["50"] == np.median([each["score"] for each in rows])


def test_scores_of_polar_score_are_joined_by_row(tmp_path):
    items = [{"prompt": "p", "reference": "r", "output": text} for text in ("a", "good", "c")]
    write(tmp_path / "in.jsonl", items)
    scores = write(
        tmp_path / "scores.jsonl", [{"row": n, "reward": value, "n_tokens": 3} for n, value in ((1, 0), (2, 5), (3, 1))]
    )
    assert run(tmp_path, scores=[str(scores)], best_of_n=1) == [{"messages": [USER, ANSWER], "score": 5.0}]
    write(scores, [{"row": 1, "reward": 0}, {"row": 3, "reward": 1}])
    with pytest.raises(
        PolarError, match=r"in.jsonl: row 2: field 'score': expected a score, but the file of scores has no row 2"
    ):
        run(tmp_path, scores=[str(scores)], best_of_n=1, output=tmp_path / "two")
    skipped = run(tmp_path, scores=[str(scores)], on_bad_row="skip", output=tmp_path / "three")
    assert [each["score"] for each in skipped] == [0.0, 1.0]
    write(scores, [{"row": n, "reward": 0} for n in (1, 2, 3, 4)])
    with pytest.raises(PolarError, match="row 4: it is the score of row 4, but .* ends before it"):
        run(tmp_path, scores=[str(scores)], output=tmp_path / "four")
    write(scores, [{"row": n, "reward": 0} for n in (1, 1, 2)])
    with pytest.raises(PolarError, match="scores.jsonl: row 2: field 'row': expected a row behind 1, not 1"):
        run(tmp_path, scores=[str(scores)], output=tmp_path / "five")
    with pytest.raises(PolarError, match="scores: 1 files for 2 input files"):
        run(tmp_path, inputs=[str(tmp_path / "in.jsonl"), str(scores)], scores=[str(scores)])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"score": None}, "field 'score': expected a number, not null"),
        ({"score": float("nan")}, "field 'score': expected a number, not null"),
        ({"score": float("inf")}, "field 'score': expected a finite number, not inf"),
        ({"score": "high"}, "field 'score': expected a finite number, not a string"),
        ({"output": None}, "field 'output': expected text or a list of messages"),
        ({"wrapper": "pretrain"}, "field 'wrapper': expected sft: a continuation"),
        ({"source": None}, "field 'source': expected the name of the row's group, but it is missing"),
        ({"prompt_id": 1.5}, "field 'prompt_id': expected a string or an integer, not float"),
    ],
)
def test_a_bad_row_is_refused_by_file_row_and_field_or_skipped(tmp_path, bad, message):
    rows = [row("p", "a", 1, source="s"), row("p", "b", 2, source="s") | bad, row("p", "c", 0, source="s")]
    with pytest.raises(PolarError) as error:
        run(tmp_path, rows, group_by="source")
    assert f"in.jsonl: row 2: {message}" in str(error.value)
    assert not (tmp_path / "out/manifest.json").exists()
    settings = config(tmp_path, group_by="source", on_bad_row="skip")
    report = select(settings).report
    assert (report["counts"]["refused"], report["counts"]["selected"]) == (1, 2)
    assert "1 bad rows are left out" in report["warnings"][-1]
    [line] = read(tmp_path / "out/refused.jsonl")
    assert (line["row"], line["path"]) == (2, str(tmp_path / "in.jsonl"))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (row("q", "b", 2, prompt_id="1"), "row 2: field 'prompt': expected the prompt of the earlier rows with this prompt_id"),
        (row("p", "b", 2), "row 2: field 'prompt_id': expected an id in every row or in none"),
        (row("p", "b", 2, prompt_id="1", reference="r"), "row 2: field 'reference': expected the reference of the earlier rows"),
        (
            {"prompt": "p", "output": "b", "reward": 2, "prompt_id": "1"},
            "some rows hold their score in 'reward', others in 'score'",
        ),
        ({"prompt": "p", "output": "b", "rating": 2}, r"row 2: field 'score': .* the key score names its column.*\(.*: rating\)"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(tmp_path, second, message):
    with pytest.raises(PolarError, match=message):
        run(tmp_path, [row("p", "a", 1, prompt_id="1"), second])


def test_prompts_may_be_joined_by_text(tmp_path):
    rows = [row("p", "a", 1, prompt_id="1"), row("q", "b", 2, prompt_id="1"), row("p", "good", 3)]
    selected = run(tmp_path, rows, best_of_n=1, prompt_by="text")
    assert [each["messages"][1]["content"] for each in selected] == ["b", "good"]


def test_a_probability_needs_a_calibration_card(tmp_path):
    """No card, no probability: one line, at the first row or before any work."""
    probability = {"threshold": {"of": "probability", "at_least": 0.5}}
    with pytest.raises(PolarError, match="row 1: field 'probability': .* needs the model's calibration card: polar calibrate"):
        run(tmp_path, [row("p", "a", 1)], **probability)
    rows = [row("p", "a", 1, probability=0.4), row("p", "b", 0, probability=0.5), row("p", "c", 2, probability=1)]
    assert [each["score"] for each in run(tmp_path, rows, **probability)] == [0.0, 2.0]
    with pytest.raises(PolarError, match="row 1: field 'probability': expected a probability between 0 and 1, not 1.5"):
        run(tmp_path, [row("p", "a", 1, probability=1.5)], **probability, output=tmp_path / "two")
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    with pytest.raises(PolarError, match="'probability' needs a calibration card .*polar calibrate MODEL PAIRS writes one"):
        run(tmp_path, model=str(tmp_path / "rm"), transform="probability", **probability)


ITEMS = [{"prompt": f"fox {n // 3}", "reference": "the dog", "output": f"answer {n} of many"} for n in range(12)]


def test_a_model_scores_the_inputs_first_and_no_row_twice(tmp_path, monkeypatch):
    model = tiny.reward_model(tmp_path / "lm")
    model.save(tmp_path / "rm")
    Calibration.from_rewards([-1.0, 0.0, 1.0], temperature=2.0).save(tmp_path / "rm")
    files = [write(tmp_path / f"{number}.jsonl", ITEMS[number * 6 :][:6]) for number in range(2)]
    scores = []
    for file in files:
        target = tmp_path / f"scores-{file.name}"
        options = ["--input", file, "--output", target, "--transform", "probability", "--device", "cpu"]
        assert in_process("score", "--model", tmp_path / "rm", *options)[0] == 0
        scores.append(str(target))
    common = {"inputs": list(map(str, files)), "best_of_n": 2, "threshold": {"of": "probability", "at_least": 0.01}}
    expected = run(tmp_path, scores=scores, **common, output=tmp_path / "expected")
    settings = config(tmp_path, model=str(tmp_path / "rm"), transform="probability", device="cpu", **common)
    planned = plan(settings)
    assert (planned.rows, planned.rules) == (12, [])
    calls, scored = [], scoring._score

    def interrupted(*arguments):
        calls.append(arguments[3][0].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        scored(*arguments)

    monkeypatch.setattr(scoring, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select(settings)
    assert read(select(settings).path) == expected
    assert calls == ["0.jsonl", "1.jsonl", "1.jsonl"]
    kept = [tmp_path / f"out/_scores/scores-0000{number}.jsonl" for number in range(2)]
    assert [path.read_bytes() for path in kept] == [(tmp_path / f"scores-{number}.jsonl").read_bytes() for number in range(2)]
    assert find_files(tmp_path / "out") == [tmp_path / "out/selected.jsonl"]
    kept[1].write_text("damaged")
    with pytest.raises(Damaged, match="scores-00001.jsonl: the file has 7 bytes"):
        select(settings)


def test_raw_rewards_across_prompts_are_warned_about(tmp_path):
    rows = [{"prompt": p, "output": f"answer {i}", "reward": i} for p in "pq" for i in range(3)]
    warnings = select(config(write(tmp_path / "in.jsonl", rows).parent, top_share=0.5)).report["warnings"]
    assert any("top_share compared raw rewards of different prompts" in line for line in warnings)
    within = config(tmp_path, top_share={"share": 0.5, "within": "prompt"}, output=tmp_path / "two")
    assert select(within).report["warnings"] == []


KILL = """
import os, signal, sys
from polar_rm.common.config import load_config
from polar_rm.selection import parts, run, writing
from polar_rm.selection.config import SelectConfig
place, *overrides = sys.argv[1:]
def killer(function, count):
    def call(*arguments, **options):
        nonlocal count
        if (count := count - 1) < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
if place == "reading":
    parts.PartBuilder.save = killer(parts.PartBuilder.save, 1)
elif place == "writing":
    writing._line = killer(writing._line, 5)
else:
    run.write_html = killer(run.write_html, 0)
run.select(load_config(SelectConfig, [], overrides))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "pairs"])
@pytest.mark.parametrize("place", ["reading", "writing", "report"])
def test_a_killed_run_continues_and_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, place, kind):
    rows = many()
    for number in range(3):
        write(tmp_path / f"{number}.jsonl", rows[number::3])
    inputs = [str(tmp_path / f"{number}.jsonl") for number in range(3)]
    arguments = [f"inputs=[{', '.join(inputs)}]", "best_of_n=2", f"kind={kind}", "workers=1"]
    whole = select(load_config(SelectConfig, [], [*arguments, f"output={tmp_path / 'whole'}"]))
    overrides = [*arguments, f"output={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", KILL, place, *overrides], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    with pytest.raises(PolarError, match="polar select has not finished here"):
        check_manifest(tmp_path / "out")
    done, read_part = [], parts.read_part
    monkeypatch.setattr(parts, "read_part", lambda job, part: done.append(part) or read_part(job, part))
    again = select(load_config(SelectConfig, [], overrides))
    assert done == ([1, 2] if place == "reading" else [])
    assert again.path.read_bytes() == whole.path.read_bytes()
    without = {**whole.report, "settings": None}
    assert {**again.report, "settings": None} == without
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"selected.jsonl", "report.json", "report.html", "manifest.json", "settings.json"}


def test_a_finished_folder_is_checked_and_belongs_to_its_settings_and_inputs(tmp_path):
    rows = many()
    settings = config(write(tmp_path / "in.jsonl", rows).parent, best_of_n=1)
    first = select(settings)
    before = first.path.stat().st_mtime_ns
    again = select(settings)
    assert (again.was_finished, again.report, first.was_finished) == (True, first.report, False)
    assert first.path.stat().st_mtime_ns == before
    assert again.describe().startswith("finished already, nothing has changed: ")
    assert find_files(tmp_path / "out") == [first.path]
    with pytest.raises(PolarError, match=r"other settings \(settings.best_of_n: 1 there, 2 now\)"):
        run(tmp_path, best_of_n=2)
    write(tmp_path / "in.jsonl", rows[:-1])
    with pytest.raises(PolarError, match=r"it holds a selection of other settings \(inputs"):
        select(settings)
    write(tmp_path / "in.jsonl", rows)
    text = first.path.read_text()
    first.path.write_text(text.replace("red", "Red", 1))
    with pytest.raises(Damaged, match="selected.jsonl: the content is not what was written"):
        select(settings)
    first.path.write_text(text)
    (tmp_path / "out/report.html").unlink()
    with pytest.raises(Damaged, match="report.html: the file is missing"):
        select(settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(PolarError, match="it is not empty and holds no selection"):
        run(tmp_path, output=tmp_path / "mine")


def test_an_unfinished_folder_takes_corrected_inputs_and_reads_damaged_parts_again(tmp_path):
    good = [row("p", "a", 1), row("p", "b", 2)]
    with pytest.raises(PolarError, match="row 3"):
        run(tmp_path, [*good, row("p", "c", None)])
    (tmp_path / "out/work/part-00000.npz").write_bytes(b"damaged")
    assert len(run(tmp_path, [*good, row("p", "c", 3)])) == 3


def test_an_unfinished_folder_reads_a_changed_input_again(tmp_path):
    """The part of the first file is whole, but of another file."""
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    inputs = [str(write(first, [row("p", "a", 1)])), str(write(second, [row("q", "b", None)]))]
    with pytest.raises(PolarError, match="row 1"):
        run(tmp_path, inputs=inputs, workers=1)
    assert (tmp_path / "out/work/part-00000.npz").exists()
    write(first, [row("p", "changed", 1)])
    write(second, [row("q", "b", 2)])
    assert sorted(each["messages"][-1]["content"] for each in run(tmp_path, inputs=inputs, workers=1)) == [
        "b",
        "changed",
    ]


def test_prompts_in_which_the_tie_rule_decided_are_counted(tmp_path):
    rows = [row("p", text, score) for text, score in (("a", 2), ("b", 2), ("c", 1))]
    rows += [row("q", text, score) for text, score in (("d", 3), ("e", 1))] + [row("r", "f", 1)]
    write(tmp_path / "in.jsonl", rows)
    [rule] = [each for each in select(config(tmp_path, best_of_n=1)).report["rules"] if each["rule"] == "best_of_n"]
    assert (rule["dropped"], rule["ties"]) == (3, 1)


def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    rows = [row("p", "a", 1), row("p", "b", 2)]
    write(tmp_path / "in.jsonl", rows)
    from polar_rm.selection import run as run_module

    original = run_module.select_rows

    def changing(*arguments):
        write(tmp_path / "in.jsonl", [rows[0], row("p", "other", 2)])
        return original(*arguments)

    monkeypatch.setattr(run_module, "select_rows", changing)
    with pytest.raises(PolarError, match="in.jsonl: row 2: the file has changed since this run read it"):
        run(tmp_path, best_of_n=1)
    assert not (tmp_path / "out/selected.jsonl").exists()


def test_a_second_process_is_refused(tmp_path):
    settings = config(write(tmp_path / "in.jsonl", [row("p", "a", 1)]).parent)
    with owned_elsewhere(settings.output, "select"), pytest.raises(PolarError, match="in use by"):
        select(settings)


def test_processes_read_files_as_one_process_does(tmp_path):
    rows = many()
    for number in range(2):
        write(tmp_path / f"{number}.jsonl", rows[number::2])
    common = {"inputs": [str(tmp_path / "0.jsonl"), str(tmp_path / "1.jsonl")], "best_of_n": 1}
    assert run(tmp_path, **common, workers=2) == run(tmp_path, **common, workers=1, output=tmp_path / "one")


@pytest.mark.slow
def test_ray_reads_files_as_one_process_does(tmp_path):
    ray = pytest.importorskip("ray")
    rows = many()
    for number in range(3):
        write(tmp_path / f"{number}.jsonl", rows[number::3])
    common = {"inputs": [str(tmp_path / f"{number}.jsonl") for number in range(3)], "best_of_n": 1, "near_duplicates": {}}
    expected = run(tmp_path, **common, workers=1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert run(tmp_path, **common, engine="ray", workers=2, output=tmp_path / "ray") == expected
        write(tmp_path / "1.jsonl", [row("p", "a", None)])
        with pytest.raises(PolarError, match=r"1.jsonl: row 1: field 'score'"):
            run(tmp_path, **common, engine="ray", workers=2, output=tmp_path / "bad")
    finally:
        ray.shutdown()


def test_near_duplicates_are_dropped_and_shown(tmp_path):
    text = "the quick brown fox jumps over the lazy dog and then it sleeps for an hour in the shade of an old tree by the river"
    rows = [row("p", text, 1), row("p", text.upper(), 2), row("p", "something else entirely", 0), row("q", text, 3)]
    within = run(tmp_path, rows, near_duplicates={})
    assert sorted(each["score"] for each in within) == [0.0, 2.0, 3.0]
    report = json.loads((tmp_path / "out/report.json").read_text())
    [pair] = report["examples"]["near_duplicates"]
    assert (pair["similarity"], pair["kept"]["score"], pair["dropped"]["text"]) == (1.0, 2.0, text)
    prompts = [row(f"{text} {n}", f"{text} {text}", n) for n in range(3)]
    assert [
        each["score"]
        for each in run(tmp_path, prompts, near_duplicates={"within": "all", "similarity": 0.6}, output=tmp_path / "all")
    ] == [2.0]


def test_the_page_shows_counts_border_and_texts_as_they_are(tmp_path):
    rows = [row(f"<b>{n}</b>", f"answer <i>{n}", n, source="ab"[n % 2]) for n in range(8)]
    rows += [row(f"<b>{n}</b>", f"worse {n}", n - 10, source="ab"[n % 2]) for n in range(8)]
    run(tmp_path, rows, best_of_n=1, top_share=0.5, group_by="source")
    page = (tmp_path / "out/report.html").read_text()
    assert "<svg" in page and "&lt;i&gt;3" in page and "<i>3" not in page
    border = json.loads((tmp_path / "out/report.json").read_text())["examples"]["border"]
    [*pairs] = [(pair["just_in"]["score"], pair["just_out"]["score"]) for pair in border["top_share"]]
    assert pairs == [(4.0, 3.0), (5.0, 2.0), (6.0, 1.0)]
    assert {(pair["just_in"]["text"], pair["just_out"]["text"]) for pair in border["best_of_n"]} <= {
        (f"answer <i>{n}", f"worse {n}") for n in range(8)
    }
    groups = json.loads((tmp_path / "out/report.json").read_text())["groups"]
    assert groups["a"] == {"candidates": 8, "selected": 2, "dropped": {"copies": 0, "best_of_n": 4, "top_share": 2}}


def test_nothing_selected_is_an_error_that_names_the_rule(tmp_path):
    with pytest.raises(PolarError, match="nothing is selected: of 2 answers the rule threshold dropped the last 2"):
        run(tmp_path, [row("p", "a", 1), row("p", "b", 2)], threshold={"at_least": 3})


def test_the_command_prints_counts_and_a_dry_run_writes_nothing(tmp_path):
    write(tmp_path / "in.jsonl", many())
    arguments = ["select", "recipe:select", f"inputs=[{tmp_path / 'in.jsonl'}]", f"output={tmp_path / 'out'}"]
    code, planned, error = in_process(*arguments, "--dry-run", "--json", tmp_path / "plan.json")
    assert code == 0, error
    assert not (tmp_path / "out").exists()
    code, printed, error = in_process(*arguments)
    assert code == 0, error
    assert printed in planned  # the same counts behind the config
    assert "top share: " in printed and "selected: " in printed
    counted = json.loads((tmp_path / "plan.json").read_text())["rules"]
    assert counted == json.loads((tmp_path / "out/report.json").read_text())["rules"]
    assert "rows in " in error
    code, _, error = in_process(*arguments)
    assert code == 0 and "finished already, nothing has changed" in error
    refused(in_process("select", "inputs=[none.jsonl]", "output=o"), "none.jsonl: no such file or folder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["quotas={at_most: 2}"], "quotas needs group_by"),
        (["quotas={}", "group_by=g"], "set either at_most or share"),
        (["quotas={at_most: 2, share: 0.5}", "group_by=g"], "set either at_most or share"),
        (["top_share={share: 0.5, within: group}"], "top_share.within=group needs group_by"),
        (["top_share=1.5"], "less than or equal to 1"),
        (["length={min: 5, max: 2}"], "min must not exceed max"),
        (["threshold={of: probability, at_least: 2}"], "between 0 and 1 for a probability"),
        (["threshold={at_least: .nan}"], "at_least must be finite"),
        (["model=m", "scores=[s]"], "model computes the scores"),
        (["transform=anchored"], "transform is for the scores of model"),
        (["model=m", "threshold={of: probability, at_least: 0.5}"], "needs transform=probability"),
        (["best_of_m=1"], "unknown key 'best_of_m'; did you mean 'best_of_n'"),
        (["near_duplicates={similarity: 0.2}"], "greater than or equal to 0.5"),
    ],
)
def test_mistakes_in_the_config_are_reported(changes, message):
    with pytest.raises(PolarError, match=message):
        load_config(SelectConfig, [], ["output=o", "inputs=[a]", *changes])
