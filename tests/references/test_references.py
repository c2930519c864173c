"""References from columns, siblings and policies: no row is lost, and every row names the origin of its reference."""

import json

import pytest
from support import sampling_runs, tiny
from support.owners import owned_elsewhere
from support.stub import error, good, served

from polar_rm.common import manifests
from polar_rm.common.config import load_config
from polar_rm.common.manifests import check_manifest
from polar_rm.errors import BadRow, Damaged, PolarError
from polar_rm.evaluation.data import ComparisonFiles
from polar_rm.evaluation.references import Referenced
from polar_rm.evaluation.suite_run import SuiteFiles
from polar_rm.evaluation.suites import find_suite
from polar_rm.records import (
    PROTOCOL_FIELD,
    ReferencedPrompt,
    read_comparisons,
    read_items,
    read_referenced_prompts,
    write_records,
)
from polar_rm.references.config import ReferencesConfig
from polar_rm.references.run import make_references, plan


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder, *rows, **changes):
    if rows:
        write(folder / "in.jsonl", *rows)
    values = {"output": folder / "out", "inputs": [str(folder / "in.jsonl")], "reference": {"kind": "sibling"}}
    return ReferencesConfig.model_validate(values | changes)


def run(settings):
    return list(read_comparisons(make_references(settings).path))


def pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


COLUMN = {"kind": "column", "column": "gold"}


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_column_becomes_the_reference(tmp_path, format):
    messages = [{"role": "assistant", "content": "four"}]
    rows = [pair("2+2?", "4", "5", gold="It is 4."), pair("2+2?", "4", "5", gold=messages, subset="x")]
    report = make_references(config(tmp_path, *rows, reference=COLUMN, format=format))
    assert report.path == tmp_path / f"out/references.{format}"
    first, second = read_comparisons(report.path)
    assert (first.reference, second.reference) == ("It is 4.", messages)
    assert (first.candidates, first.ranks) == (("4", "5"), (0, 1))
    assert first.metadata == {"gold": "It is 4.", PROTOCOL_FIELD: "gold"}
    assert second.metadata["subset"] == "x"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["protocol"], manifest["counts"]["made"]) == ("gold", 2)
    assert not (tmp_path / "out/work").exists()
    assert [each.reference for each in ComparisonFiles([tmp_path / "out"])] == ["It is 4.", messages]


def test_a_column_may_be_nested_and_must_hold_a_text(tmp_path):
    nested = {"kind": "column", "column": "meta.gold", "protocol": "frontier"}
    rows = [pair("p", "a", "b", meta={"gold": "g"}), pair("q", "a", "b", meta=json.dumps({"gold": "h"}))]
    comparisons = run(config(tmp_path, *rows, reference=nested))
    expected = [("g", "frontier"), ("h", "frontier")]
    assert [(each.reference, each.metadata[PROTOCOL_FIELD]) for each in comparisons] == expected
    for number, bad in enumerate(({}, {"meta": {"gold": " "}}, {"meta": {"gold": 3}}, {"meta": "text"})):
        settings = config(tmp_path, rows[0], pair("q", "a", "b", **bad), reference=nested, output=tmp_path / f"out{number}")
        with pytest.raises(BadRow, match=r"in.jsonl: row 2: field 'meta.gold': expected"):
            make_references(settings)
    with pytest.raises(BadRow, match="row 2: field 'gold': expected text .*the row has 'golds'; did you mean 'gold'"):
        rows = [pair("p", "a", "b", gold="g"), pair("q", "a", "b", golds="g")]
        make_references(config(tmp_path, *rows, reference=COLUMN, output=tmp_path / "near"))


def test_items_and_prompts_get_references_too(tmp_path):
    rows = [{"prompt": "p", "output": "o", "gold": "g"}, {"prompt": "q", "output": "o", "gold": "h"}]
    report = make_references(config(tmp_path, *rows, reference=COLUMN))
    assert [(each.reference, each.output) for each in read_items(report.path)] == [("g", "o"), ("h", "o")]
    prompts = config(tmp_path, {"prompt": "p", "gold": "g", "id": 1}, reference=COLUMN, output=tmp_path / "two", format="parquet")
    assert list(read_referenced_prompts(make_references(prompts).path)) == [("p", "g", "sft")]
    with pytest.raises(PolarError, match="row 2: a ScoreItem, but the first row is a Comparison"):
        make_references(config(tmp_path, pair("p", "a", "b", gold="g"), rows[0], reference=COLUMN, output=tmp_path / "three"))


def test_a_prompt_with_its_reference_is_written_and_read_unchanged(tmp_path):
    record = ReferencedPrompt("p", "r", "pretrain", {"a": 1})
    for name in ("a.jsonl", "a.parquet"):
        assert write_records(tmp_path / name, [record]) == 1
        assert list(read_referenced_prompts(tmp_path / name)) == [("p", "r", "pretrain")]


def test_a_sibling_is_the_best_answer_of_another_row_and_never_the_candidate_itself(tmp_path):
    rows = [
        pair("p", "good one", "bad one"),
        pair("p", "Good ONE", "bad two"),  # a copy of the first row's
        pair("p", "fine two", "bad one"),
        pair("q", "lonely", "bad"),
        pair("p", "fine two", "good one"),
    ]
    settings = config(tmp_path, *rows, on_bad_row="skip")
    comparisons = run(settings)
    # Each row gets the first best answer of another row that is not nearly equal to one of its own two.
    assert [each.reference for each in comparisons] == ["fine two", "fine two", "good one"]
    assert {each.metadata[PROTOCOL_FIELD] for each in comparisons} == {"sibling"}
    refused = [json.loads(line) for line in (tmp_path / "out/refused.jsonl").read_text().splitlines()]
    assert [row["row"] for row in refused] == [4, 5]
    assert "another answer to this prompt of the best rank" in refused[0]["expected"]
    assert refused[0]["content"] == rows[3]
    report = make_references(settings)
    assert (report.counts["made"], report.counts["refused"], report.counts["copies"]) == (3, 2, 0)
    assert report.warnings[-1].startswith("2 rows were refused")
    with pytest.raises(BadRow, match="in.jsonl: row 4: field 'prompt': expected another answer"):
        make_references(config(tmp_path, output=tmp_path / "strict"))


def test_the_best_of_three_ranks_becomes_the_reference_and_is_no_longer_a_candidate(tmp_path):
    rows = [
        {"prompt": "p", "candidates": ["worst", "best", "middle"], "ranks": [2, 0, 1]},
        {"prompt": "q", "candidates": ["a", "b", "c"], "ranks": [0, 0, 1]},
    ]
    report = make_references(config(tmp_path, *rows))
    first, second = read_comparisons(report.path)
    assert (report.counts["from_row"], report.counts["copies"]) == (2, 0)
    assert (first.reference, first.candidates, first.ranks) == ("best", ("worst", "middle"), (2, 1))
    assert (second.reference, second.candidates, second.ranks) == ("a", ("b", "c"), (0, 1))
    two = {"prompt": "p", "candidates": ["a", "b", "c"], "ranks": [0, 1, 1]}  # without its best candidate it has no ordered pair
    with pytest.raises(BadRow, match="row 1: field 'prompt': expected another answer"):
        make_references(config(tmp_path, two, output=tmp_path / "two"))


def test_siblings_of_items_are_ordered_by_scores(tmp_path):
    scores = {"a": 0.1, "b": 0.9, "c": 0.5, "B ": 0.95}
    rows = [{"prompt": "p", "output": text, "score": score} for text, score in scores.items()]
    by_score = {"kind": "sibling", "score": "score"}
    report = make_references(config(tmp_path, *rows, reference=by_score))
    # By hand: the best answer that differs in more than case and blanks.
    assert {each.output: each.reference for each in read_items(report.path)} == {"a": "B ", "b": "c", "c": "B ", "B ": "c"}
    with pytest.raises(BadRow, match="row 1: field 'output': expected candidates with ranks; for items .* reference.score"):
        make_references(config(tmp_path, output=tmp_path / "two"))
    with pytest.raises(BadRow, match="row 2: field 'score': expected a number"):
        settings = config(tmp_path, rows[0], {"prompt": "p", "output": "x"}, reference=by_score, output=tmp_path / "three")
        make_references(settings)
    with pytest.raises(BadRow, match="row 1: field 'output': expected an answer, or candidates"):
        make_references(config(tmp_path, {"prompt": "p"}, output=tmp_path / "four"))


def test_rows_that_have_a_reference_are_refused_kept_or_get_a_new_one(tmp_path):
    rows = [pair("p", "a", "b", gold="g"), pair("q", "a", "b", gold="h", reference="old")]
    with pytest.raises(BadRow, match="row 2: field 'reference': expected none.*existing=keep or replace"):
        make_references(config(tmp_path, *rows, reference=COLUMN))
    kept = run(config(tmp_path, reference=COLUMN, existing="keep"))
    assert [each.reference for each in kept] == ["g", "old"]
    assert [each.metadata.get(PROTOCOL_FIELD) for each in kept] == ["gold", None]
    replaced = run(config(tmp_path, reference=COLUMN, existing="replace", output=tmp_path / "two"))
    assert [each.reference for each in replaced] == ["g", "h"]


def test_references_that_equal_an_answer_are_counted(tmp_path):
    report = make_references(
        config(tmp_path, pair("p", "Four.", "5", gold="four. "), pair("q", "a", "b", gold="c"), reference=COLUMN)
    )
    assert report.counts["copies"] == 1
    assert report.warnings == ["1 rows have a reference that is equal, or nearly, to one of their answers"]


def test_a_finished_folder_is_checked_and_belongs_to_its_settings_and_inputs(tmp_path):
    settings = config(tmp_path, pair("p", "a", "b", gold="g"), reference=COLUMN)
    first = make_references(settings)
    before = first.path.stat().st_mtime_ns
    assert make_references(settings) == first
    assert first.path.stat().st_mtime_ns == before
    with pytest.raises(PolarError, match=r"other settings \(settings.limit: null there, 1 now\)"):
        make_references(config(tmp_path, reference=COLUMN, limit=1))
    write(tmp_path / "in.jsonl", pair("p", "a", "b", gold="other"))
    with pytest.raises(PolarError, match=r"other settings \(inputs"):
        make_references(settings)
    with first.path.open("a") as file:
        file.write("{}\n")
    write(tmp_path / "in.jsonl", pair("p", "a", "b", gold="g"))
    with pytest.raises(Damaged, match="references.jsonl: the file has"):
        make_references(settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(PolarError, match="it is not empty and holds no references"):
        make_references(config(tmp_path, reference=COLUMN, output=tmp_path / "mine"))


def test_a_run_that_is_killed_at_its_beginning_or_end_continues(tmp_path, monkeypatch):
    """Before the settings were written the folder was refused as one of somebody else."""
    settings = config(tmp_path, pair("p", "a", "b", gold="g"), reference=COLUMN)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(manifests, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make_references(settings)
    first = make_references(settings)
    (settings.output / "work").mkdir()  # a kill between the manifest and the removal
    (settings.output / "work/references").touch()
    assert make_references(settings).path == first.path
    assert not (settings.output / "work").exists()


def test_a_second_process_is_refused_and_unfinished_folders_are_not_read(tmp_path):
    settings = config(tmp_path, pair("p", "a", "b"), reference=COLUMN)
    with owned_elsewhere(settings.output, "references"), pytest.raises(PolarError, match="in use by"):
        make_references(settings)
    with pytest.raises(BadRow):
        make_references(settings)
    with pytest.raises(PolarError, match="polar references has not finished here"):
        check_manifest(settings.output)
    corrected = config(tmp_path, pair("p", "a", "b", gold="g"), reference=COLUMN)
    assert make_references(corrected).counts["made"] == 1  # the same folder continues with the corrected input


def test_a_dry_run_writes_nothing(tmp_path):
    rows = [pair("p", "a", "b"), pair("p", "c", "d"), pair("q", "e", "f")]
    planned = plan(config(tmp_path, *rows, on_bad_row="skip"))
    assert (planned.rows, planned.counts["made"], planned.counts["refused"]) == (3, 2, 1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadRow, match="row 3"):
        plan(config(tmp_path))


def policy(url, **changes):
    values = {"name": "a", "family": "f", "kind": "chat", "backend": "openai", "model": "m", "base_url": url, "retries": 1}
    return {"kind": "policy", "policy": values | {"decoding": {"max_new_tokens": 6}} | changes}


def test_a_file_without_any_reference_is_refused(tmp_path):
    with pytest.raises(PolarError, match=r"all 1 rows were refused, see .*refused.jsonl"):
        make_references(config(tmp_path, pair("q", "lonely", "bad"), on_bad_row="skip"))


def test_a_policy_answers_every_prompt_once(tmp_path):
    rows = [pair("fox 1", "a", "b"), pair("fox 1", "c", "d"), pair("fox 2", "a", "b")]
    with served() as server:
        settings = config(tmp_path, *rows, reference=policy(server.url))
        planned = plan(settings, tokens_per_s=10)
        assert (planned.rows, planned.counts, planned.estimates[0].requests) == (3, {"kept": 0, "prompts": 2}, 2)
        assert planned.estimates[0].seconds == pytest.approx(2 * 6 / 10)  # at most 6 tokens for each of two prompts
        assert plan(settings).estimates[0].seconds is None
        assert not (tmp_path / "out").exists() and server.bodies == []
        comparisons = run(settings)
        n_requests = len(server.bodies)
    assert n_requests == 2
    assert [each.prompt for each in comparisons] == ["fox 1", "fox 1", "fox 2"]
    first, second, third = comparisons
    assert first.reference == second.reference != third.reference
    assert first.metadata["reference_protocol"] == "own" and first.metadata["reference_policy"] == "a"


def instruction(text):
    return {"input": text, "output_1": f"{text} a", "output_2": f"{text} b", "label": 2}


def llmbar(folder, *rows):
    (folder / "LLMBar/Natural").mkdir(parents=True)
    (folder / "LLMBar/Natural/dataset.json").write_text(json.dumps(rows))
    return {"suite": "LLMBar", "inputs": [str(folder / "LLMBar")]}


def test_a_benchmark_gets_references_that_can_be_joined_to_it(tmp_path):
    benchmark = llmbar(tmp_path, instruction("fox 1"), instruction("fox 2"))
    with served() as server:
        report = make_references(config(tmp_path, **benchmark, reference=policy(server.url)))
    references = {row["metadata"]["id"]: row["reference"] for row in map(json.loads, report.path.read_text().splitlines())}
    assert len(set(references.values())) == 2
    comparisons = list(Referenced(SuiteFiles(find_suite("llmbar"), tmp_path / "LLMBar"), report.path))
    assert [each.prompt for each in comparisons] == ["fox 1", "fox 2"]
    assert {each.metadata["id"]: each.reference for each in comparisons} == references
    assert all(each.metadata[PROTOCOL_FIELD] == "own" for each in comparisons)


def test_two_comparisons_of_one_prompt_in_a_benchmark_get_different_siblings(tmp_path):
    rows = [{"input": "fox", "output_1": text, "output_2": "bad", "label": 1} for text in ("good one", "fine two")]
    report = make_references(config(tmp_path, **llmbar(tmp_path, *rows)))
    comparisons = list(Referenced(SuiteFiles(find_suite("llmbar"), tmp_path / "LLMBar"), report.path))
    assert [each.reference for each in comparisons] == ["fine two", "good one"]


def test_references_that_equal_a_candidate_of_a_benchmark_are_counted(tmp_path):
    """What is written has the prompt alone."""
    with served() as server:
        server.respond = lambda body, _: good(body, "fox 1 B")
        benchmark = llmbar(tmp_path, instruction("fox 1"), instruction("fox 2"))
        report = make_references(config(tmp_path, **benchmark, reference=policy(server.url)))
    assert (report.counts["made"], report.counts["copies"]) == (2, 1)


def test_a_candidate_of_a_benchmark_never_becomes_its_reference(tmp_path):
    """The benchmark's rule needs all candidates."""
    settings = config(tmp_path, **llmbar(tmp_path, instruction("fox 1")))
    with pytest.raises(BadRow, match="LLMBar: row 1: field 'prompt': expected another answer to this prompt in another row"):
        make_references(settings)


@pytest.mark.parametrize(("existing", "kept"), [("keep", 1), ("replace", 0)])
def test_gold_references_of_a_benchmark_are_refused_kept_or_replaced(tmp_path, existing, kept):
    row = {"question": "fox", "answer": "4", "answer_type": "numeric", "completion": "four", "gold_correct": True}
    write(tmp_path / "verify_bench.jsonl", row)
    benchmark = {"suite": "verifybench", "inputs": [str(tmp_path / "verify_bench.jsonl")]}
    with served() as server:
        with pytest.raises(BadRow, match="row 1: field 'reference': expected none"):
            make_references(config(tmp_path, **benchmark, reference=policy(server.url), output=tmp_path / "strict"))
        report = make_references(config(tmp_path, **benchmark, reference=policy(server.url), existing=existing))
        assert len(server.bodies) == 1 - kept
    assert (report.counts["kept"], report.counts["made"]) == (kept, 1 - kept)


def test_samples_that_arrived_are_kept_when_the_server_fails(tmp_path):
    rows = [pair(f"fox {i}", "a", "b") for i in range(4)]
    with served() as server:
        server.respond = lambda body, number: good(body) if number <= 2 else error(500, "down")
        settings = config(tmp_path, *rows, reference=policy(server.url, concurrency=1))
        with pytest.raises(PolarError, match="missing"):
            make_references(settings)
        first_prompts = [body["messages"][-1]["content"] for body in server.bodies[:2]]
        server.bodies.clear()
        server.respond = lambda body, _: good(body)
        assert make_references(settings).counts["made"] == 4
        later_prompts = [body["messages"][-1]["content"] for body in server.bodies]
    assert sorted(first_prompts + later_prompts) == [f"fox {i}" for i in range(4)]


def test_a_policy_in_this_process(tmp_path):
    folder = tiny.causal_lm(tmp_path / "lm")
    (folder / "chat_template.jinja").write_text(sampling_runs.TEMPLATE)
    local = {"name": "me", "family": "t", "kind": "chat", "model": str(folder), "decoding": {"max_new_tokens": 4}}
    rows = [{"prompt": "fox"}, {"prompt": "dog", "wrapper": "pretrain"}]
    source = {"kind": "policy", "policy": local, "precision": "fp32", "protocol": "frontier"}
    report = make_references(config(tmp_path, *rows, reference=source, on_bad_row="skip"))
    [(prompt, reference, _)] = read_referenced_prompts(report.path)
    assert prompt == "fox" and reference.strip()
    assert report.protocol == "frontier" and report.counts["refused"] == 1
    refused = json.loads((tmp_path / "out/refused.jsonl").read_text())
    assert "a row of wrapper sft" in refused["expected"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["reference={kind: colum, column: x}"], "kind must be column, policy or sibling"),
        (["reference={kind: column, colum: x}"], "unknown key 'reference.colum'; did you mean 'column'"),
        (["reference={kind: policy, policy: {name: a, family: f, kind: chat, model: m, samples: 2}}"], "samples must be 1"),
        (["reference={kind: policy, policy: {name: a, family: f, kind: chat, model: m, base_url: u}}"], "base_url is a key of"),
        (["reference={kind: sibling}", "suite=llmbra"], "unknown suite 'llmbra'; did you mean 'llmbar'"),
        (["reference={kind: sibling}", "suite=rmb", "inputs=[a, b]"], "inputs must be one path where suite is set, not 2"),
        (["reference={kind: column, column: x}", "suite=rmb"], "kind must be policy or sibling where suite is set"),
        (["reference={kind: sibling}", "exists=keep"], "unknown key 'exists'; did you mean 'existing'"),
    ],
)
def test_mistakes_in_the_config_are_reported(changes, message):
    with pytest.raises(PolarError, match=message):
        load_config(ReferencesConfig, [], ["output=o", "inputs=[a]", *changes])
