"""H6: a verb that gets a folder or a pattern says how many files it means, and what is left out."""

import json

import pytest
from support import runs, tiny
from support.commands import in_process, refused
from support.trajectories import zoo

from polar_rm.records import write_records

PAIR = {"prompt": "p", "reference": "the fox", "chosen": "the quick fox", "rejected": "12 34"}
ITEM = {"prompt": "p", "reference": "r", "output": "o"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.causal_lm(folder / "lm")
    tiny.reward_model(folder / "rmlm").save(folder / "rm")
    for name, row in (("pairs", PAIR), ("items", ITEM), ("prompts", {"prompt_id": "{}", "prompt": "fox"})):
        for file in ("a.jsonl", "b.jsonl", ".ipynb_checkpoints/a.jsonl", "._a.jsonl"):
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**row, "prompt_id": file}) + "\n")
    for file in ("a.parquet", "b.parquet", "_c.parquet"):
        (folder / "samples").mkdir(exist_ok=True)
        rows = zoo(4) if file == "a.parquet" else [row for row in zoo(8) if int(row.prompt_id[1:]) >= 4]
        write_records(folder / "samples" / file, rows)
    runs.comparisons(folder / "train.jsonl", 4)
    return folder


POLICY = "policies=[{{name: x, family: f, kind: base, model: lm}}]"  # braces are doubled for `format`
VERBS = {
    "sample": ("prompts", ["sample", "prompts={}", "source=s", POLICY, "output=o", "--dry-run"]),
    "texts of sample": (
        "prompts",
        ["sample", "prompts={{texts: {}, tokenizer: lm, column: prompt}}", "source=s", POLICY, "output=o", "--dry-run"],
    ),
    "corpus": ("inputs", ["corpus", "inputs=[{}]", "output=o", "--dry-run"]),
    "references": (
        "inputs",
        ["references", "inputs=[{}]", "reference={{kind: sibling}}", "existing=keep", "output=o", "--dry-run"],
    ),
    "rft": ("data", ["rft", "policy.model=lm", "policy.kind=base", "reward.source=rm", "data=[{}]", "output=o", "--dry-run"]),
    "pretrain": ("train data", ["pretrain", "model.init=lm", "data.train=[{}]", "output=o", "optim.lr=1e-3", "--dry-run"]),
    "eval data": (
        "eval data",
        ["finetune", "model.init=lm", "data.train=[train.jsonl]", "data.eval=[{}]", "output=o", "optim.lr=1e-3", "--dry-run"],
    ),
}
DATA = {"sample": "prompts", "texts of sample": "prompts", "corpus": "samples", "rft": "items"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_says_how_many_files_a_folder_means(folder, tmp_path, monkeypatch, verb):
    name, arguments = VERBS[verb]
    data = DATA.get(verb, "pairs")
    for each in folder.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    hidden = "1 hidden" if data == "samples" else "1 hidden, 1 hidden folders"
    code, _, error = in_process(*(argument.format(data) for argument in arguments))
    assert code == 0, error
    line = f"{name}: the folders and patterns mean 2 files; left out: {hidden}"
    assert [each for each in error.splitlines() if "folders and patterns" in each] == [line]
    suffix = "parquet" if data == "samples" else "jsonl"
    code, _, error = in_process(*(argument.format(f"{data}/a.{suffix}") for argument in arguments))
    assert code == 0 and "folders and patterns" not in error, error


def test_other_ranks_say_nothing(folder, tmp_path, monkeypatch):
    for each in folder.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "1")
    code, _, error = in_process(*(argument.format("items") for argument in VERBS["rft"][1]))
    assert code == 0 and "folders and patterns" not in error, error


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "--model", "package:demo", "--input", "-", "--output", "s.jsonl"],
        ["score", "--model", "package:demo", "--input", "train.jsonl", "--output", "-"],
        ["evaluate", "-", "--model", "length"],
        ["evaluate", "train.jsonl", "--model", "length", "--json", "-"],
        ["evaluate", "train.jsonl", "--model", "length", "--plot", "-"],
        ["encode", "inputs=[-]", "model.init=lm", "output=o"],
    ],
)
def test_a_dash_is_no_file(folder, tmp_path, monkeypatch, arguments):
    for each in folder.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    refused(in_process(*arguments), "-: ", "standard", "name a file")
    assert not (tmp_path / "-").exists()
