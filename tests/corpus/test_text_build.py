"""Whole builds of continuations, from files to a finished folder."""

import csv
import json
import random
import re
import unicodedata
from hashlib import blake2b
from math import ceil, floor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import in_process
from support.plain_texts import WORDS, text_config, texts, write
from support.trajectories import corpus_config, zoo

from polar_rm.common.config import load_config
from polar_rm.common.manifests import check_manifest
from polar_rm.corpus import plan as plan_module
from polar_rm.corpus import text_build
from polar_rm.corpus.build import build
from polar_rm.corpus.config import CorpusConfig
from polar_rm.corpus.plan import make_plan
from polar_rm.corpus.report import summary
from polar_rm.errors import ConfigError, PolarError
from polar_rm.records import Trajectory, read_comparisons, write_records


def comparisons(settings, split="train"):
    return list(read_comparisons(settings.output / split))


def whole(comparison):
    """The text that a comparison was made of."""
    return comparison.prompt + comparison.candidates[0]


def brute_force(rows, seed, n):
    """Beginning -> its continuation and the negatives: the continuations of the n texts after it in the order of hashes."""
    ring = []
    for text in rows:
        identity = blake2b(" ".join(unicodedata.normalize("NFC", text.casefold()).split()).encode(), digest_size=16).hexdigest()
        low, high = max(50, ceil(0.2 * len(text))), min(len(text) - 50, floor(0.8 * len(text)))
        target = random.Random(f"{seed} {identity}").randint(low, high)
        borders = [match.start() for match in re.finditer(r"(?<=\S)\s", text) if low <= match.start() <= high]
        cut = min(borders, key=lambda i: (abs(i - target), i))
        ring.append((blake2b(f"{seed} {identity}".encode(), digest_size=8).digest(), text[:cut], text[cut:]))
    ring.sort()
    return {row[1]: tuple(ring[(i + step) % len(ring)][2] for step in range(n + 1)) for i, row in enumerate(ring)}


@pytest.mark.parametrize("seed", [0, 7])
def test_a_brute_force_pairing_gives_the_same_comparisons(tmp_path, seed):
    rows = texts(40)
    report = build(settings := text_config(tmp_path, rows, seed=seed, pairing={"negatives": 2}))
    built = comparisons(settings)
    assert {c.prompt: c.candidates for c in built} == brute_force([row["text"] for row in rows], seed, 2)
    assert report["splits"]["train"]["comparisons"] == len(built) == 40
    assert {(c.reference, c.ranks, c.wrapper) for c in built} == {(None, (0, 1, 1), "pretrain")}
    sources = {row["text"]: row["source"] for row in rows}
    assert all(c.metadata["source"] == sources[whole(c)] and len(c.metadata["text_id"]) == 32 for c in built)


def test_negatives_of_the_same_source_and_of_like_length(tmp_path):
    rows = texts(60)
    by_source = {source: [row["text"] for row in rows if row["source"] == source] for source in "xyz"}
    build(settings := text_config(tmp_path / "a", rows, pairing={"hard": "same_source"}))
    expected = {}
    for each in by_source.values():
        expected |= brute_force(each, 0, 3)
    assert {c.prompt: c.candidates for c in comparisons(settings)} == expected
    report = build(settings := text_config(tmp_path / "b", rows, pairing={"near_length": 1.5, "uses": 4}))
    built = comparisons(settings)
    uses = {}
    for first, *others in (c.candidates for c in built):
        for text in others:
            uses[text] = uses.get(text, 0) + 1
            assert 2 / 3 <= (1 + len(text)) / (1 + len(first)) <= 1.5
    assert max(uses.values()) <= 4
    assert report["splits"]["train"]["short"] == sum(len(c.candidates) < 4 for c in built)


def records_of(settings, split="train"):
    """The rows of all shards in their order, as bytes of JSON."""
    return [row for path in sorted((settings.output / split).glob("*")) for row in pq.read_table(path).to_pylist()]


def test_the_corpus_depends_only_on_texts_and_seed(tmp_path, monkeypatch):
    rows, more = texts(70), {"splits": {"prompts": 0.3}, "pairing": {"near_length": 2.0}}
    first = text_config(tmp_path / "a", rows, **more)
    others = [
        text_config(tmp_path / "b", random.Random(1).sample(rows, 70), **more),
        text_config(tmp_path / "c", rows, "rows.parquet", **more),
        text_config(tmp_path / "d", [*rows, *rows[:9]], "rows.jsonl", **more, buckets=1),
        text_config(tmp_path / "e", rows[:31], **more, buckets=11),
    ]
    write(tmp_path / "e/more.parquet", rows[31:])
    others[-1] = others[-1].model_copy(update={"inputs": (*others[-1].inputs, str(tmp_path / "e/more.parquet"))})
    build(first)
    expected = [records_of(first, split) for split in ("train", "unseen_texts")]
    assert all(expected)
    for each in others:
        build(each)
        assert [records_of(each, split) for split in ("train", "unseen_texts")] == expected
    assert (others[0].output / "train/00001.parquet").read_bytes() == (first.output / "train/00001.parquet").read_bytes()
    build(another := text_config(tmp_path / "f", rows, **more, seed=1))
    assert records_of(another) != expected[0]
    monkeypatch.setattr(plan_module, "_PART_BYTES", 700)
    build(parts := text_config(tmp_path / "g", rows, **more))
    assert len(make_plan(parts).parts) > 10
    assert [records_of(parts, split) for split in ("train", "unseen_texts")] == expected


@pytest.mark.slow
def test_processes_and_ray_write_the_same_bytes(tmp_path):
    ray = pytest.importorskip("ray")
    rows = texts(60)
    every = {"one": ("local", 1), "two": ("local", 2), "ray": ("ray", 2)}
    settings = {
        name: text_config(tmp_path / name, rows, workers=workers, engine=engine, splits={"prompts": 0.3})
        for name, (engine, workers) in every.items()
    }
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for each in settings.values():
            build(each)
    finally:
        ray.shutdown()
    shards = [{p.name: p.read_bytes() for p in each.output.glob("*/*.parquet")} for each in settings.values()]
    assert shards[0] == shards[1] == shards[2] != {}


# --------------------------------------------------------------------------------------------------------------- splits


def test_no_text_and_no_near_duplicate_is_in_two_splits(tmp_path):
    rows = texts(120)
    shared = " ".join(WORDS[:13])
    near = [{"text": f"{row['text']} {word} {row['text'][:60]}", "source": "x"} for row in rows[:40] for word in ("one", "two")]
    chained = [{**row, "text": f"{row['text'][:200]} {shared} {row['text'][200:]}"} for row in rows[40:60]]
    cases = [{**row, "text": row["text"].upper().replace(" ", "  ")} for row in rows[60:80]]
    all_rows = [*rows, *near, *chained, *cases]
    report = build(settings := text_config(tmp_path, all_rows, splits={"prompts": 0.3}))
    train, held_out = (comparisons(settings, name) for name in ("train", "unseen_texts"))
    counts = report["counts"]["texts"]
    assert counts["near_held_out"] > 20 and counts["copies"] == 20 and len(held_out) > 20
    assert len(train) + len(held_out) + counts["near_held_out"] + counts["copies"] == len(all_rows)

    def grams(comparison):
        words = re.findall(r"\w+", whole(comparison).casefold())
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    assert not set().union(*map(grams, train)) & set().union(*map(grams, held_out))
    for each in (train, held_out):  # negatives are of the same split
        assert {text for c in each for text in c.candidates[1:]} <= {c.candidates[0] for c in each}
    dropped = [json.loads(line) for line in (settings.output / "contaminated.jsonl").read_text().splitlines()]
    assert len(dropped) == counts["near_held_out"]
    for each in dropped:
        row, match = all_rows[each["row"] - 1]["text"], all_rows[each["match"]["row"] - 1]["text"]
        assert row.startswith(each["start"]) and each["path"] == each["match"]["file"] == settings.inputs[0]
        assert all(each["match"]["words"] in " ".join(re.findall(r"\w+", text.casefold())) for text in (row, match))


def test_texts_of_evaluation_data_are_dropped(tmp_path):
    rows = texts(20)
    write(tmp_path / "eval.jsonl", [{"prompt": f"Question: {rows[3]['text'][20:150]}"}])
    report = build(settings := text_config(tmp_path, rows, decontamination={"files": [str(tmp_path / "eval.jsonl")]}))
    assert rows[3]["text"] not in {whole(c) for c in comparisons(settings)}
    [dropped] = map(json.loads, (settings.output / "contaminated.jsonl").read_text().splitlines())
    assert (dropped["row"], dropped["match"]["row"]) == (4, 1)
    assert report["counts"]["texts"]["contaminated"] == 1


def continued(prompts=30):
    """Trajectories with texts that are long enough to be divided."""
    return [
        Trajectory("t", f"p{p}", f"prompt {p}", policy, s, f"{row['text']} {policy}{s}")
        for p, row in enumerate(texts(prompts))
        for policy in "ab"
        for s in range(2)
    ]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_trajectories_hold_out_the_prompts_of_the_other_pairing(tmp_path, name):
    rows = continued()
    prompts = {row.text: row.prompt for row in rows}
    split = {"prompts": 0.3}
    policies = corpus_config(tmp_path / "a", rows, name, splits=split)
    build(policies)
    write_records(tmp_path / "b" / name, rows)
    settings = text_config(tmp_path / "b", None, name, pairing={"rows": "trajectories"}, splits=split, decontamination={"n": 500})
    report = build(settings)
    for theirs, ours in (("train", "train"), ("unseen_prompts", "unseen_texts")):
        of_policies = {c.prompt for c in read_comparisons(policies.output / theirs)}
        assert {prompts[whole(c)] for c in comparisons(settings, ours)} == of_policies != set()
    assert report["counts"]["texts"]["texts"] == len(rows)
    selected = text_config(tmp_path / "b", None, name, pairing={"rows": "trajectories"}, policies=["a"], output=tmp_path / "some")
    counts = build(selected)["counts"]["texts"]
    assert (counts["read"], counts["unselected"], counts["texts"]) == (len(rows), len(rows) // 2, len(rows) // 2)


# --------------------------------------------------------------------------------------------------------------- inputs


def test_plain_files_give_passages(tmp_path):
    paragraphs = [row["text"] for row in texts(60)]
    for name, part in (("one.txt", paragraphs[:30]), ("two.md", paragraphs[30:])):
        (tmp_path / name).write_text("\n\n".join(part))
    pairing = {"max_characters": 500}
    settings = text_config(tmp_path, pairing=pairing, inputs=[str(tmp_path / "*.txt"), str(tmp_path / "two.md")])
    report = build(settings)
    assert len(comparisons(settings)) > 10
    joined = " ".join(" ".join(paragraphs).split())
    assert all(" ".join(whole(c).split()) in joined and len(whole(c)) <= 500 for c in comparisons(settings))
    assert report["sources"]["texts"].keys() == {"one.txt", "two.md"}
    with pytest.raises(PolarError, match=r"none.txt: no such file or folder"):
        make_plan(text_config(tmp_path, inputs=[str(tmp_path / "none.txt")]))


def test_any_table_and_any_column(tmp_path):
    rows = texts(12)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["body", "n"], *([row["text"], n] for n, row in enumerate(rows))])
    build(settings := text_config(tmp_path, None, "rows.csv", pairing={"column": "body"}))
    assert {whole(c) for c in comparisons(settings)} == {row["text"] for row in rows}
    assert all("source" not in c.metadata for c in comparisons(settings))
    write(tmp_path / "b/rows.parquet", [{"body": row["text"], "other": 1} for row in rows])
    with pytest.raises(PolarError, match=r"rows.parquet: it holds no texts: the column 'text' is missing; pairing.column .*body"):
        build(text_config(tmp_path / "b", None, "rows.parquet"))
    build(parquet := text_config(tmp_path / "b", None, "rows.parquet", pairing={"column": "body"}))
    assert records_of(parquet) == records_of(settings)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_bad_rows_are_named_or_skipped(tmp_path, name):
    rows = texts(20)
    rows[5]["text"] = None
    write(tmp_path / name, rows)
    with pytest.raises(PolarError, match=rf"{name}: row 6: field 'text'"):
        build(text_config(tmp_path, None, name))
    report = build(settings := text_config(tmp_path, None, name, on_bad_row="skip"))
    [refused] = map(json.loads, (settings.output / "refused.jsonl").read_text().splitlines())
    assert (refused["path"], refused["row"], refused["field"]) == (str(tmp_path / name), 6, "text")
    assert (report["counts"]["texts"]["read"], report["counts"]["texts"]["refused"], len(comparisons(settings))) == (20, 1, 19)


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path):
    values = [row["text"].encode() for row in texts(5)]
    values[2] = b"\xff" + values[2]
    pq.write_table(pa.table({"text": pa.array(values, pa.binary()).view(pa.string())}), tmp_path / "rows.parquet")
    with pytest.raises(PolarError, match="row 3: field 'text'"):
        build(text_config(tmp_path, None, "rows.parquet"))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_trajectories_are_not_read_as_texts_by_mistake(tmp_path, name):
    write_records(tmp_path / name, zoo())
    with pytest.raises(PolarError, match="trajector.*, which pairing.rows=trajectories reads"):
        build(text_config(tmp_path, None, name))


def test_texts_without_a_source_have_no_negatives_of_their_source(tmp_path):
    rows = [{"text": row["text"]} for row in texts(5)]
    with pytest.raises(PolarError, match="row 1: field 'source': expected the source of the text, as pairing.hard=same_source"):
        build(text_config(tmp_path, rows, pairing={"hard": "same_source"}))


def test_texts_are_cleaned_and_cut(tmp_path):
    rows = texts(10)
    rows.append({"text": "go " * 400 + "home to the river, where it ends at last.", "source": "x"})
    report = build(settings := text_config(tmp_path, rows, pairing={"max_characters": 300}))
    assert report["cleaning"]["repeated_words"]["texts"] == 1
    assert report["cleaning"]["repeated_words"]["examples"][0]["source"] == "x"
    assert max(len(whole(c)) for c in comparisons(settings)) <= 300
    assert report["counts"]["texts"]["cut"] == sum(len(row["text"]) > 300 for row in rows[:-1])


# ------------------------------------------------------------------------------------------------------------- problems


def reason(tmp_path, rows, **changes):
    settings = text_config(tmp_path, rows, **changes)
    with pytest.raises(PolarError) as caught:
        build(settings)
    assert not (settings.output / "settings.json").exists()  # the next attempt has other settings
    return str(caught.value)


def test_nothing_to_compare_is_told_in_one_line(tmp_path):
    one = texts(1)
    start = "there is nothing to compare: of "
    assert reason(tmp_path, one) == start + "1 text 1 find no other continuation that the settings allow"
    equal = [*one, *one, {**one[0], "text": one[0]["text"].upper()}]
    assert reason(tmp_path, equal) == (
        start + "3 texts 2 are copies of others, 1 find no other continuation that the settings allow"
    )
    short = [{"text": "too short"}, {"text": " \n"}, {"text": "".join(random.Random(0).choices(WORDS, k=60))}]
    assert reason(tmp_path, short) == (
        start + "3 texts 1 are empty, 1 are too short for min_beginning, min_continuation and the range of beginnings, 1 have no "
        "word border where they may be divided"
    )
    assert "2 find no other" in reason(tmp_path, texts(2, shortest=20, longest=20), pairing={"near_length": 1.0000001})


def test_copies_of_the_true_continuation_are_no_negatives(tmp_path):
    """Two texts with one ending: divided where it begins, each would have its own continuation as a negative."""
    end = "x" * 60 + " and this is how it always ends, whatever happened before it."
    rows = [{"text": "A" * 55 + f" {end}"}, {"text": "B" * 55 + f"  {end.upper()}"}, *texts(1)]
    pairing = {"beginning": {"unit": "characters", "low": 51, "high": 57}, "min_continuation": 1, "negatives": 5}
    build(settings := text_config(tmp_path, rows, pairing=pairing))
    sizes = {c.prompt[0]: len(c.candidates) for c in comparisons(settings)}
    assert len(sizes) == 3
    assert set(sizes.values()) == {2}  # both are copies for the third text, too


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("families={a: b}", "families can't be set with pairing.kind: continuations"),
        ("wrapper=sft", "wrapper can't be set with"),
        ("splits.policies=1", "splits.policies can't be set with"),
        ("policies=[a]", "policies can't be set with"),
        ("pairing.positives=2", "unknown key 'pairing.positives'; only kind triples or k_way has it"),
        ("pairing.negativs=2", "unknown key 'pairing.negativs'; did you mean 'negatives'"),
        ("pairing.kind=continuation", "pairing: kind must be k_way, triples or continuations"),
    ],
)
def test_settings_that_do_not_apply_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CorpusConfig, [], ["output=o", "inputs=[a]", "pairing.kind=continuations", override])


# ------------------------------------------------------------------------------------------------- report, resume, verb


@pytest.mark.plots
def test_every_file_of_a_finished_folder(tmp_path):
    settings = text_config(tmp_path, texts(50), splits={"prompts": 0.2}, licences={"x": "CC0"})
    report = build(settings)
    built = {split: comparisons(settings, split) for split in ("train", "unseen_texts")}
    for split, rows in built.items():
        numbers = report["splits"][split]
        parts = [text for c in rows for text in (c.prompt, *c.candidates)]
        assert (numbers["comparisons"], numbers["pairs"]) == (len(rows), sum(len(c.candidates) - 1 for c in rows))
        assert numbers["characters"] == sum(map(len, parts))
        assert numbers["words"] == sum(len(text.split()) for text in parts)
    every = [c for rows in built.values() for c in rows]
    assert report["lengths"]["beginning"]["characters"] == sum(len(c.prompt) for c in every)
    assert report["lengths"]["continuation"]["words"] == sum(len(c.candidates[0].split()) for c in every)
    assert sum(report["sources"]["texts"].values()) == 50
    assert report["policies"] is None
    assert report["baselines"]["overall"].keys() == {"length", "tfidf"}
    manifest = json.loads((settings.output / "manifest.json").read_text())
    assert (manifest["policies"], manifest["licences"]) == (None, {"x": "CC0"})
    assert {name.partition("/")[0] for name in manifest["shards"]} == {"train", "unseen_texts"}
    check_manifest(settings.output, full=True)
    page = (settings.output / "report.html").read_text()
    assert page.count("<svg") == 2 and "no policies" in page
    assert not (settings.output / "work").exists()
    assert build(settings) == report
    assert summary(report)[0] == "50 texts read, 50 with a comparison; left out: 0 refused"


def test_trivial_scorers_find_planted_shortcuts(tmp_path):
    """Length: long beginnings of long texts. Characters: every text has words of its own."""
    rng = random.Random(0)
    rows = [
        {"text": " ".join(rng.choice(own) for _ in range(length))}
        for length in (40, 400)
        for own in ([f"{chr(97 + n)}{chr(97 + m)}" * 3 for m in range(9)] for n in range(20) for _ in range(5))
    ]
    measures = build(text_config(tmp_path, rows, pairing={"negatives": 1}, report={"pairs": 500}))["baselines"]["overall"]
    assert measures["length"]["accuracy"] > 0.6
    assert measures["tfidf"]["accuracy"] > 0.9


@pytest.mark.parametrize("stage", ["divide_bucket", "keep_bucket", "draw_all", "pair_bucket"])
def test_an_interrupted_build_continues(tmp_path, monkeypatch, stage):
    rows, more = texts(50), {"splits": {"prompts": 0.3}}
    build(expected := text_config(tmp_path / "a", rows, **more))
    settings = text_config(tmp_path / "b", rows, **more)
    work, calls = getattr(text_build, stage), []

    def fails_second(job, *number):
        work(job, *number)
        calls.append(number)
        if len(calls) == (1 if stage == "draw_all" else 2):
            raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(text_build, stage, fails_second)
    with pytest.raises((PolarError, OSError), match="No space left"):
        build(settings)
    assert (settings.output / "settings.json").exists()
    monkeypatch.setattr(text_build, "partition_texts", None)  # finished
    monkeypatch.setattr(text_build, stage, work)
    report = build(settings)
    for split in ("train", "unseen_texts"):
        assert records_of(settings, split) == records_of(expected, split) != []
    assert report["counts"]["texts"]["texts"] == 50


def test_the_verb_and_its_recipe(tmp_path):
    write(tmp_path / "rows.jsonl", texts(30))
    arguments = ["recipe:corpus_continuations", f"inputs=[{tmp_path}/rows.jsonl]", f"output={tmp_path}/out", "workers=1"]
    code, output, error = in_process("corpus", *arguments)
    assert code == 0, error
    assert "30 texts read, 30 with a comparison" in output and "train: " in output
