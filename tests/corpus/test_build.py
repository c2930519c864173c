"""Whole builds, from files to a finished folder."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support import trajectories
from support.trajectories import FAMILIES, zoo
from support.trajectories import corpus_config as config

from polar_rm.corpus import build as build_module
from polar_rm.corpus import plan as plan_module
from polar_rm.corpus.build import build
from polar_rm.corpus.measures import Sample
from polar_rm.corpus.plan import make_plan
from polar_rm.corpus.report import summary
from polar_rm.errors import PolarError
from polar_rm.records import Trajectory, find_files, read_comparisons, write_records


def shards(settings):
    """Every shard's name and bytes."""
    return {str(path.relative_to(settings.output)): path.read_bytes() for path in sorted(settings.output.glob("*/*.parquet"))}


def comparisons(settings, split="train"):
    return list(read_comparisons(settings.output / split))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_only_selected_policies_take_part(tmp_path, name):
    policies = sorted({row.policy for row in zoo()})
    kept = {policies[0], policies[1]}
    report = build(config(tmp_path, zoo(), name, policies=[policies[0], f"[{policies[1]}]"]))
    selected = [row for row in zoo() if row.policy in kept]
    build(only_selected := config(tmp_path / "some", selected, name))
    texts = [(c.prompt, c.candidates) for c in read_comparisons(tmp_path / "out/train")]
    assert texts == [(c.prompt, c.candidates) for c in comparisons(only_selected)] != []
    assert set(report["policies"]) == kept
    counts = report["counts"]["trajectories"]
    assert counts["read"] == len(zoo())
    assert counts["unselected"] == len(zoo()) - len(selected)


def test_every_file_of_a_finished_folder(tmp_path):
    settings = config(tmp_path, zoo(), pairing={"positives": 2, "negatives": 2}, licences={"test": "CC0"}, families=FAMILIES)
    report = build(settings)
    built = comparisons(settings)
    assert len(built) == 6 * 4
    assert report["splits"]["train"]["comparisons"] == 24
    assert report["splits"]["train"]["pairs"] == 24 * 4
    assert {c.ranks for c in built} == {(0, 0, 1, 1)}
    assert {c.metadata["distance"] for c in built} <= {"same_family", "other_family", "mixed"}
    for each in built:
        authors = [text[0] for text in each.candidates]
        assert [*each.reference[0] * 2] == authors[:2]
        assert authors == each.metadata["candidate_policies"]
        assert each.prompt == f"prompt {each.metadata['prompt_id'][1:]}"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["shards"].keys() == shards(settings).keys()
    assert manifest["licences"] == {"test": "CC0"}
    assert manifest["inputs"][0]["name"] == "rows.parquet"
    assert manifest["policies"]["a"]["family"] == "x"
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<svg") == 3
    assert {path.name for path in settings.output.iterdir() if path.is_file()} == {
        "README.md", "contaminated.jsonl", "manifest.json", "refused.jsonl", "report.html", "report.json", "settings.json",
    }  # fmt: skip


def test_the_card_names_splits_inputs_and_licences_and_no_local_folder(tmp_path):
    settings = config(tmp_path, zoo(), licences={"test": "CC0"})
    report = build(settings)
    card = (settings.output / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["configs"][0]["data_files"] == [{"split": name, "path": f"{name}/*.parquet"} for name in report["splits"]]
    manifest = json.loads((settings.output / "manifest.json").read_text())
    assert f"* `rows.parquet`, SHA-256 `{manifest['inputs'][0]['sha256']}`" in card
    assert "* test: CC0" in card and f"| train | {report['splits']['train']['comparisons']} |" in card
    assert str(tmp_path) not in card
    assert find_files(settings.output / "train") == sorted((settings.output / "train").glob("*.parquet"))


def test_sizes_and_pairs_in_the_report_equal_those_of_the_shards(tmp_path):
    settings = config(tmp_path, zoo(samples=2), pairing={"negatives": 2})
    report = build(settings)
    built = comparisons(settings)
    texts = [text for c in built for text in (c.prompt, c.reference, *c.candidates)]
    assert report["splits"]["train"]["characters"] == sum(map(len, texts))
    assert report["splits"]["train"]["words"] == sum(len(text.split()) for text in texts)
    assert report["counts"]["trajectories"]["texts"] == 6 * 4 * 2
    pairs = {(policy, other): number for policy, other, number in report["pairs_by_policies"]}
    assert sum(pairs.values()) == 2 * len(built)
    for (policy, other), number in pairs.items():
        names = "abcd"[policy], "abcd"[other]
        assert number == sum(names[1] in c.metadata["candidate_policies"] for c in built if c.metadata["policy"] == names[0])
    assert set(report["baselines"]["overall"]) == {"length", "tfidf"}
    assert report["baselines"]["overall"]["tfidf"]["accuracy"] > 0.9  # each of these policies has its own words


def test_the_shards_depend_only_on_rows_and_seed(tmp_path):
    rows = zoo()
    first = config(tmp_path / "a", rows)
    other_order = config(tmp_path / "b", random.Random(1).sample(rows, len(rows)))
    jsonl = config(tmp_path / "c", rows, "rows.jsonl")
    two_files = config(tmp_path / "d", rows[:31])
    write_records(tmp_path / "d/more.jsonl", rows[31:])
    two_files = two_files.model_copy(update={"inputs": (*two_files.inputs, str(tmp_path / "d/more.jsonl"))})
    for each in (first, other_order, jsonl, two_files):
        build(each)
    assert len(shards(first)) == 3
    assert shards(first) == shards(other_order) == shards(jsonl) == shards(two_files)
    another = config(tmp_path / "e", rows, seed=1)
    build(another)
    assert shards(another) != shards(first)


def test_comparisons_do_not_depend_on_other_prompts_or_on_buckets(tmp_path):
    six, three = config(tmp_path / "a", zoo()), config(tmp_path / "b", zoo(3), buckets=1)
    build(six), build(three)
    assert [c for c in comparisons(six) if c.metadata["prompt_id"] in ("p0", "p1", "p2")] == comparisons(three)


def test_splits_share_no_prompt_and_no_policy(tmp_path):
    settings = config(tmp_path, zoo(60, "abcdef"), splits={"prompts": 0.3, "policies": ["e", "f"]})
    build(settings)
    train, prompts, policies = (comparisons(settings, name) for name in ("train", "unseen_prompts", "unseen_policies"))
    ids = [{c.metadata["prompt_id"] for c in each} for each in (train, prompts, policies)]
    assert not ids[0] & (ids[1] | ids[2])
    assert ids[1] == ids[2]
    for each, names in ((train, "abcd"), (prompts, "abcd"), (policies, "ef")):
        assert {p for c in each for p in (c.metadata["policy"], *c.metadata["candidate_policies"])} == set(names)


def test_copies_of_a_prompt_under_two_ids_are_in_one_split(tmp_path):
    rows = [
        Trajectory("t", f"{copy}-{p}", f"{prompt} {p}", policy, s, trajectories.text(policy, p, s))
        for copy, prompt in enumerate(["the prompt", "The  prompt"]) for p in range(20) for policy in "ab" for s in range(2)
    ]  # fmt: skip
    settings = config(tmp_path, rows, splits={"prompts": 0.4})
    build(settings)
    names = ("train", "unseen_prompts")
    train, held_out = ({c.metadata["prompt_id"][2:] for c in comparisons(settings, name)} for name in names)
    assert train and held_out and not train & held_out


def test_contaminated_prompts_are_dropped_and_listed(tmp_path):
    (tmp_path / "eval.jsonl").write_text('{"prompt": "Prompt  2"}\n')
    settings = config(tmp_path, zoo(), decontamination={"files": [str(tmp_path / "eval.jsonl")]})
    report = build(settings)
    assert {c.metadata["prompt_id"] for c in comparisons(settings)} == {"p0", "p1", "p3", "p4", "p5"}
    [dropped] = map(json.loads, (tmp_path / "out/contaminated.jsonl").read_text().splitlines())
    assert dropped["prompt_id"] == "p2"
    assert dropped["match"]["row"] == 1
    assert report["counts"]["prompts"]["contaminated"] == 1


def test_caps_of_a_policy_keep_the_same_comparisons_in_any_order(tmp_path):
    uncapped, capped = (config(tmp_path / n, zoo(20), pairing={"per_policy": cap}) for n, cap in (("a", None), ("b", 5)))
    build(uncapped)
    report = build(capped)
    kept = comparisons(capped)
    assert [sum(c.metadata["policy"] == policy for c in kept) for policy in "abcd"] == [5] * 4
    assert [c for c in comparisons(uncapped) if c in kept] == kept
    assert report["splits"]["train"]["comparisons"] == 20
    assert report["baselines"]["overall"]["length"]["pairs"] == 20


def test_the_sample_for_baselines_does_not_favour_capped_policies():
    job = SimpleNamespace(config=SimpleNamespace(report=SimpleNamespace(pairs=40)))
    capped = [number << 40 for number in range(100)]  # a cap keeps the smallest keys
    others = [number << 57 for number in range(1, 101)]
    sample = Sample(job)
    sample.add(0, {"key": capped + others, "split": ["train"] * 200})
    assert 8 < sum(row < 100 for _, _, _, row in sample._chosen) < 32


def test_distances_of_negatives(tmp_path):
    settings = config(tmp_path, zoo(), families={"[ab]": "x", "*": "y"}, pairing={"negatives": 3, "distance": ["same_family"]})
    report = build(settings)
    assert {frozenset(c.metadata["candidate_policies"]) for c in comparisons(settings)} == {frozenset("ab"), frozenset("cd")}
    assert report["pairs_by_distance"].keys() == {"same_family"} == report["baselines"]["by_distance"].keys()
    with pytest.raises(PolarError, match=r"family of 'b' and 2 more is not known"):
        build(config(tmp_path, families={"a": "x"}, pairing={"distance": ["same_family"]}, output=tmp_path / "out2"))


def test_comparisons_with_fewer_negatives_than_requested_are_counted(tmp_path):
    rows = [*zoo(6), *zoo(2, policies="e")]
    report = build(config(tmp_path, rows, pairing={"negatives": 4}))
    assert report["splits"]["train"]["short"] == 4 * 4  # on four prompts there are three others
    assert "train: 26 comparisons (16 with fewer negatives than requested), 88 pairs" in summary(report)


def test_families_come_from_the_rows_or_the_sampling_manifest(tmp_path):
    rows = [row for policy in "abcd" for row in zoo(20, policy, metadata={"family": FAMILIES[policy], "checkpoint_of": "a"})]
    report = build(config(tmp_path / "rows", rows, models={"d": "d"}))
    assert report["policies"]["c"]["family"] == "y"
    assert report["pairs_by_distance"].keys() == {"same_model", "same_family", "other_family"}
    settings = config(tmp_path / "manifest", zoo(20))
    policies = [{"policy": p, "family": "f", "model": "same" if p in "ab" else p, "licence": "MIT"} for p in "abcd"]
    manifest = {"schema": "polar-rm/trajectories/1", "policies": policies}
    (tmp_path / "manifest/manifest.json").write_text(json.dumps(manifest))
    report = build(settings)
    assert report["pairs_by_distance"].keys() == {"same_model", "same_family"}
    assert report["policies"]["a"]["licence"] == "MIT"


SAMPLED = "polar-rm/trajectories/1"


@pytest.mark.parametrize(
    "content",
    [
        "{ // none\n}",
        "\xff",
        "[]",
        *(json.dumps({"schema": SAMPLED} | more) for more in ({}, {"policies": 3}, {"policies": [1, {}]})),
    ],
)
def test_a_manifest_of_another_program_is_ignored(tmp_path, content):
    settings = config(tmp_path, zoo())
    (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    assert build(settings)["policies"]["a"]["family"] is None


def test_damaged_files_in_the_output_folder_are_reported_in_one_line(tmp_path):
    settings = config(tmp_path, zoo())
    build(settings)
    (settings.output / "report.json").unlink()
    with pytest.raises(PolarError, match="report.json: No such file"):
        build(settings)
    (settings.output / "settings.json").write_text("{")
    with pytest.raises(PolarError, match="settings.json: not JSON"):
        build(settings)


def test_policies_that_continue_are_never_compared_with_those_that_answer(tmp_path):
    rows = [
        row for policy in "abcd" for row in zoo(policies=policy, metadata={"wrapper": "sft" if policy in "ab" else "pretrain"})
    ]
    settings = config(tmp_path, rows, pairing={"negatives": 3})
    build(settings)
    assert {(c.wrapper, *sorted(set(c.metadata["candidate_policies"]))) for c in comparisons(settings)} == {
        ("sft", "a", "b"),
        ("pretrain", "c", "d"),
    }
    build(forced := config(tmp_path, wrapper="pretrain", output=tmp_path / "forced"))
    assert {c.wrapper for c in comparisons(forced)} == {"pretrain"}


def test_cleaning_comes_before_pairing_and_is_reported(tmp_path):
    looped = [Trajectory("t", f"p{p}", f"prompt {p}", "loop", s, "go " * (100 + s)) for p in range(6) for s in range(2)]
    settings = config(tmp_path, [*zoo(policies="ab"), *looped])
    report = build(settings)
    assert report["cleaning"]["repeated_words"]["texts"] == 12
    [example, *_] = report["cleaning"]["repeated_words"]["examples"]
    assert len(example["after"]) < len(example["before"])
    # Both samples are equal after the loop is shortened, so the policy can't have the reference.
    assert report["counts"]["trajectories"]["equal_after_cleaning"] == 6
    assert {c.metadata["policy"] for c in comparisons(settings)} == {"a", "b"}
    off = config(tmp_path, cleaning={"repeated_words": False, "repeated_characters": False}, output=tmp_path / "off")
    assert build(off)["cleaning"] == {}


def test_empty_texts_and_duplicates_are_counted_and_left_out(tmp_path):
    rows = zoo()
    rows += [Trajectory("t", "p0", "prompt 0", "a", 9, " \n"), rows[0], rows[0]]
    pq.write_table(pa.table({**columns(rows), "dup_count": pa.array([2.0] * 74 + [None])}), tmp_path / "rows.parquet")
    settings = config(tmp_path)
    counts = build(settings)["counts"]["trajectories"]
    assert {name: counts[name] for name in ("read", "rows", "empty", "duplicates", "texts")} == {
        "read": 75, "rows": 75, "empty": 1, "duplicates": 2, "texts": 72,
    }  # fmt: skip
    assert counts["samples"] == 74 * 2 + 1
    assert not any(text.isspace() for c in comparisons(settings) for text in (c.reference, *c.candidates))


def test_messages_and_texts_that_look_like_them_are_unchanged(tmp_path):
    rows = [
        Trajectory("t", kind, prompt, policy, s, f'[{{"role": {policy}{s}')
        for kind, prompt in (("m", [{"role": "user", "content": "hi"}]), ("t", '[{"role": nothing'), ("q", '["x"]'))
        for policy in "ab"
        for s in range(2)
    ]
    for name in ("rows.parquet", "rows.jsonl"):
        settings = config(tmp_path / name, rows, name)
        build(settings)
        prompts = {c.metadata["prompt_id"]: c.prompt for c in comparisons(settings)}
        assert prompts == {"m": [{"role": "user", "content": "hi"}], "t": '[{"role": nothing', "q": '["x"]'}


def columns(rows):
    return {
        name: [getattr(row, name) for row in rows] for name in ("source", "prompt_id", "prompt", "policy", "sample_id", "text")
    }


def test_bad_rows_stop_the_build_or_are_skipped(tmp_path):
    values = columns(zoo())
    values["policy"][3] = None
    texts = [text.encode() for text in values["text"]]
    texts[5] = b"\xff\xfe"
    table = pa.table({**values, "text": pa.array(texts, pa.binary()).view(pa.string())})
    settings = config(tmp_path)
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(PolarError, match=r"rows.parquet: row 4: field 'policy': expected a string, not null"):
        build(settings)
    settings = settings.model_copy(update={"output": tmp_path / "skipped", "on_bad_row": "skip"})
    report = build(settings)
    refused = [json.loads(line) for line in (tmp_path / "skipped/refused.jsonl").read_text().splitlines()]
    assert [(row["row"], row["field"]) for row in refused] == [(4, "policy"), (6, "text")]
    assert report["counts"]["trajectories"]["refused"] == 2
    assert report["counts"]["trajectories"]["read"] == 72


def test_an_id_of_two_prompts(tmp_path):
    settings = config(tmp_path, [*zoo(), Trajectory("t", "p0", "another", "a", 9, "x")])
    with pytest.raises(PolarError, match=r"row 73: prompt_id 'p0' has another prompt than in .*: row 1$"):
        build(settings)
    settings = settings.model_copy(update={"output": tmp_path / "skipped", "on_bad_row": "skip"})
    assert build(settings)["counts"]["trajectories"]["refused"] == 1
    [refused] = map(json.loads, (tmp_path / "skipped/refused.jsonl").read_text().splitlines())
    assert (refused["row"], refused["content"]["prompt"]) == (73, "another")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (zoo(policies="a"), "all trajectories are of one policy, 'a'"),
        (zoo(samples=1), "no prompt has two different texts of one policy"),
        (zoo(policies="a") + [Trajectory("t", "x", "x", "b", 0, "x")], "no prompt has two different texts of one policy"),
    ],
)
def test_nothing_to_compare(tmp_path, rows, message):
    with pytest.raises(PolarError, match=message):
        build(config(tmp_path, rows))
    # There is nothing to continue, and the next attempt may have other settings.
    assert not list((tmp_path / "out").iterdir())


def test_files_that_hold_no_trajectories(tmp_path):
    pq.write_table(pa.table({"prompt": ["x"], "prompt_id": ["y"]}), tmp_path / "other.parquet")
    with pytest.raises(
        PolarError, match=r"other.parquet: it holds no trajectories: the columns source, policy, text, sample_id are"
    ):
        make_plan(config(tmp_path, name="other.parquet"))
    values = columns(zoo(1))
    pq.write_table(pa.table({**values, "text": list(range(12))}), tmp_path / "numbers.parquet")
    with pytest.raises(PolarError, match="the column text holds int64, not text"):
        make_plan(config(tmp_path, name="numbers.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(PolarError, match=r"broken.parquet: not a complete Parquet file"):
        make_plan(config(tmp_path, name="broken.parquet"))
    (tmp_path / "rows.jsonl").write_text('{"source": "x"}\n')
    with pytest.raises(PolarError, match=r"rows.jsonl: row 1: field 'prompt_id'"):
        build(config(tmp_path, name="rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text('{"source": "\\ud800"}\n')
    with pytest.raises(PolarError, match=r"lone surrogate"):
        build(config(tmp_path, name="rows.jsonl", output=tmp_path / "out2"))


@pytest.mark.parametrize("name", ["n_tokens", "dup_count"])
@pytest.mark.parametrize("value", [10**30, -7])
def test_impossible_counts_are_refused_by_name(tmp_path, name, value):
    rows = columns(zoo())
    lines = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    lines[3][name] = value
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pq.write_table(pa.table({**rows, name: [1.0] * 3 + [float(value)] + [None] * 68}), tmp_path / "rows.parquet")
    for file in ("rows.jsonl", "rows.parquet"):
        settings = config(tmp_path, name=file, output=tmp_path / file.replace(".", "-"))
        with pytest.raises(PolarError, match=f"{file}: row 4: field '{name}': expected .*(2\\^53|64 bits)"):
            build(settings)
        assert build(settings.model_copy(update={"on_bad_row": "skip"}))["counts"]["trajectories"]["refused"] == 1


def test_a_boolean_count_and_a_column_of_another_type_are_refused(tmp_path):
    row = {"source": "s", "prompt_id": "p", "prompt": "x", "policy": "a", "sample_id": 0, "text": "t", "dup_count": True}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(PolarError, match="row 1: field 'dup_count': expected a number from 0 to .* not true"):
        build(config(tmp_path, name="rows.jsonl"))
    for name, value, kind in (("n_tokens", "many", "text|integers"), ("dup_count", True, "bool"), ("finish_reason", 5, "int64")):
        pq.write_table(pa.table({**columns(zoo(1)), name: [value] * 12}), tmp_path / "rows.parquet")
        with pytest.raises(PolarError, match=rf"rows.parquet: the column {name} holds .*({kind})"):
            make_plan(config(tmp_path))


def test_metadata_in_a_column_of_structs_is_read(tmp_path):
    rows = zoo(20)
    families = [{"family": FAMILIES[row.policy]} for row in rows]
    pq.write_table(pa.table({**columns(rows), "metadata": families}), tmp_path / "rows.parquet")
    assert build(config(tmp_path))["policies"]["c"]["family"] == "y"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_policy_of_two_families_in_one_file_is_refused_unless_settings_decide(tmp_path, name):
    rows = [replace(row, metadata={"family": "f1" if number < 40 else "f2"}) for number, row in enumerate(zoo())]
    with pytest.raises(PolarError, match="policy '.' has the family 'f1' in some rows and 'f2' in others"):
        build(config(tmp_path, rows, name))
    assert build(config(tmp_path, name=name, families={"*": "z"}))["policies"]["a"]["family"] == "z"


def test_rows_are_numbered_across_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "_PART_BYTES", 1)
    values = columns(zoo())
    values["policy"][40] = None
    pq.write_table(pa.table(values), tmp_path / "rows.parquet", row_group_size=9)
    settings = config(tmp_path)
    assert len(make_plan(settings).parts) == 8
    with pytest.raises(PolarError, match="row 41: field 'policy'"):
        build(settings)


def test_an_interrupted_build_is_not_finished_and_continues(tmp_path, monkeypatch):
    complete, interrupted = config(tmp_path / "a", zoo()), config(tmp_path / "b", zoo())
    build(complete)
    real, built = build_module.build_bucket, []

    def fail(job, number):
        if number == 1:
            raise KeyboardInterrupt
        built.append(number)
        real(job, number)

    monkeypatch.setattr(build_module, "build_bucket", fail)
    with pytest.raises(KeyboardInterrupt):
        build(interrupted)
    assert not (interrupted.output / "manifest.json").exists()
    assert not shards(interrupted).keys() & shards(complete).keys()

    def count(job, number):
        built.append(number)
        real(job, number)

    monkeypatch.setattr(build_module, "build_bucket", count)
    build(interrupted)
    assert built == [0, 1, 2]
    assert shards(interrupted) == shards(complete)
    build(interrupted)  # it is finished, so nothing is built again
    assert built == [0, 1, 2]


def test_a_folder_of_other_settings_is_refused_with_the_difference(tmp_path):
    settings = config(tmp_path, zoo())
    build(settings)
    with pytest.raises(PolarError, match=r"a corpus of other settings \(pairing.negatives: 1 there, 2 now\)"):
        build(config(tmp_path, pairing={"negatives": 2}))
    build(config(tmp_path, workers=2))  # the number of workers is not part of the settings
    write_records(tmp_path / "rows.parquet", zoo(5))
    with pytest.raises(PolarError, match=r"other settings \(inputs.rows.parquet"):
        build(settings)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").touch()
    with pytest.raises(PolarError, match="not empty"):
        build(config(tmp_path, output=tmp_path / "foreign"))


def test_folders_are_read_as_polar_sample_leaves_them(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/a.jsonl").write_text('{"error": "timeout"}\n')
    settings = config(tmp_path, zoo(), inputs=[str(tmp_path)], output=tmp_path.parent / f"{tmp_path.name}-out")
    assert build(settings)["counts"]["trajectories"]["rows"] == 72


def test_tokens_are_counted_with_a_tokenizer(tmp_path):
    from support import tiny

    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    report = build(config(tmp_path, zoo(2), report={"tokenizer": str(tmp_path), "pairs": 10}))
    assert report["splits"]["train"]["tokens"] > report["splits"]["train"]["words"]
    cutting = tiny.tokenizer()
    cutting = type(cutting).from_str(cutting.to_str())
    cutting.enable_truncation(2)
    cutting.save(str(tmp_path / "tokenizer.json"))  # many tokenizer files truncate
    settings = {"report": {"tokenizer": str(tmp_path), "pairs": 10}, "output": tmp_path / "again"}
    assert build(config(tmp_path, zoo(2), **settings))["splits"]["train"]["tokens"] == report["splits"]["train"]["tokens"]
    with pytest.raises(PolarError, match="none: no tokenizer.json"):
        build(config(tmp_path, report={"tokenizer": str(tmp_path / "none")}, output=tmp_path / "out2"))


@pytest.mark.slow
def test_processes_and_ray_write_the_same_bytes(tmp_path):
    ray = pytest.importorskip("ray")
    rows = zoo(40)
    settings = {name: config(tmp_path / name, rows, workers=2, engine=engine) for name, engine in (("a", "local"), ("b", "ray"))}
    single = config(tmp_path / "c", rows)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for each in (*settings.values(), single):
            build(each)
    finally:
        ray.shutdown()
    assert shards(settings["a"]) == shards(settings["b"]) == shards(single)


def test_a_removed_last_line_leaves_no_newline(tmp_path):
    rows = [
        replace(row, text=f"{row.text} And so on.\nA line that the limit ended in the", finish_reason="length") for row in zoo()
    ]
    build(settings := config(tmp_path, rows))
    texts = [text for c in comparisons(settings) for text in (c.reference, *c.candidates)]
    assert texts
    assert all(text.endswith("And so on.") for text in texts)
