"""`polar audit` and `polar evaluate --reference all`, called as by a user."""

import json

import pytest
from support import shortcuts, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    settings = tiny.EncoderSettings(max_length=1024, max_response_length=400)
    tiny.reward_model(folder / "lm", settings=settings).save(folder / "model")
    return folder / "model"


@pytest.fixture(autouse=True)
def pairs(tmp_path):
    rows = [
        {"prompt": each.prompt, "reference": each.reference, "candidates": each.candidates, "ranks": each.ranks}
        for each in shortcuts.comparisons(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_failed_probe_is_exit_code_1_and_files_are_written(polar, tmp_path):
    targets = ("--json", "audit.json", "--html", "audit.html", "--plot", "audit.png")
    code, shown, error = polar("audit", "bag=tfidf", "pairs.jsonl", *targets)
    assert code == 1, error
    report = json.loads((tmp_path / "audit.json").read_text())
    assert (report["contender"], report["verdict"], report["data"][0]["rows"]) == ("bag", "failed", 60)
    assert "bag: failed (60 pairs of 60 prompts)" in shown and "failed: scrambled: the reference's words in random order" in shown
    assert "scrambled: where the wrong answer won with the largest margin" in (tmp_path / "audit.html").read_text()
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


def test_thresholds_come_from_options_and_files(polar, tmp_path):
    (tmp_path / "mild.yaml").write_text("scrambled: 0\nprompts: 5\n")
    mild = ("--threshold", "mild.yaml", "--threshold", "markdown=-9")
    code, _, error = polar("audit", "tfidf", "pairs.jsonl", *mild, "--limit", "20", "--json", "audit.json")
    assert code == 0, error
    report = json.loads((tmp_path / "audit.json").read_text())
    assert (report["thresholds"]["scrambled"], report["thresholds"]["prompts"], report["thresholds"]["markdown"]) == (0, 5, -9)
    assert (report["n_comparisons"], report["limit"]) == (20, 20)
    code, _, error = polar("audit", "tfidf", "pairs.jsonl", "--threshold", "scambled=0")
    assert (code, error.strip()) == (2, "polar: error: scambled=0: unknown key 'scambled'; did you mean 'scrambled'?")


def test_a_native_model_is_audited_with_and_without_references(polar, model, tmp_path):
    code, _, error = polar("audit", model, "pairs.jsonl", "--limit", "24", "--json", "audit.json")
    assert code in (0, 1), error
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["kind"] == "native" and report["takes_reference"] and "encoder_hash" in report["facts"]
    assert all(each["verdict"] != "not applicable" for each in report["findings"] if each["probe"] in ("gain", "empty", "copied"))
    polar("audit", model, "pairs.jsonl", "--limit", "24", "--reference", "empty", "--json", "empty.json")
    empty = json.loads((tmp_path / "empty.json").read_text())
    gain = next(each for each in empty["findings"] if each["probe"] == "gain")
    assert (empty["takes_reference"], gain["sentence"]) == (False, "gain: it takes no reference")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("audit", "nowhere", "pairs.jsonl"), "nowhere: no such folder of a model"),
        (("audit", "tfidf", "none.jsonl"), "none.jsonl: no such file or folder"),
        (("audit", "tfidf", "pairs.jsonl", "--plot", "a.pdf"), "a.pdf: unknown kind of file to write; known: .png, .svg"),
        (("audit", "tfidf", "pairs.jsonl", "--json", "pairs.jsonl"), "pairs.jsonl: this run writes this file"),
        (("audit", "scores:pairs.jsonl", "pairs.jsonl"), "stored scores belong to unchanged texts"),
        (("evaluate", "--suite", "rm-bench", "--model", "length", "--reference", "all", "pairs.jsonl"), "--reference all: "),
    ],
)
def test_what_can_not_be_done_is_told_in_one_line(polar, arguments, message):
    code, _, error = polar(*arguments)
    lines = [line for line in error.splitlines() if line.startswith("polar: error: ")]
    assert (code, len(lines)) == (2, 1), error
    assert message in lines[0]


def test_evaluate_tells_what_contenders_make_of_their_references(polar, tmp_path):
    options = ("--reference", "all", "--json", "all.json", "--pairs", "pairs.csv", "--html", "page.html", "--table", "md")
    code, shown, error = polar("evaluate", "pairs.jsonl", "--model", "bag=tfidf", *options)
    assert code == 0, error
    use = json.loads((tmp_path / "all.json").read_text())["reference"]["use"]
    assert use["contenders"]["bag"]["gain"]["difference"] > 0 and use["swapped_pairs"] == 60
    assert "**accuracy by reference**" in shown
    assert "adherence" in error and "bag" in error  # sentences go beside a table in another format
    assert "accuracy by reference" in (tmp_path / "page.html").read_text()


def test_references_are_made_and_the_reports_name_them(polar, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    (tmp_path / "bare.jsonl").write_text(
        "".join(json.dumps(row | {"reference": None, "gold": row["reference"]}) + "\n" for row in rows)
    )
    settings = ("inputs=[bare.jsonl]", "output=refs", "reference={kind: column, column: gold}")
    code, shown, error = polar("references", *settings, "--dry-run")
    assert (code, (tmp_path / "refs").exists()) == (0, False), error
    assert "made: 60" in shown
    code, _, error = polar("references", *settings, "--json", "made.json")
    assert code == 0, error
    assert "60 references (gold) made: refs/references.jsonl" in error
    assert json.loads((tmp_path / "made.json").read_text())["counts"]["made"] == 60
    code, shown, error = polar("evaluate", "refs", "--model", "length", "--json", "e.json")
    assert code == 0 and "reference given (gold)" in shown, error
    assert json.loads((tmp_path / "e.json").read_text())["reference"]["protocols"] == {"gold": 60}
    assert polar("audit", "tfidf", "refs", "--limit", "20", "--json", "a.json")[0] in (0, 1)
    assert json.loads((tmp_path / "a.json").read_text())["references"] == {"gold": 20}


def test_an_audit_in_which_no_probe_is_applicable_has_not_passed(polar, tmp_path):
    code, shown, error = polar("audit", "tfidf", "pairs.jsonl", "--limit", "4", "--json", "audit.json")
    assert (code, "tfidf: undecided (4 pairs of 4 prompts" in shown) == (2, True), shown
    assert "polar: error: no probe is applicable to these pairs, so nothing was audited" in error
    assert json.loads((tmp_path / "audit.json").read_text())["verdict"] == "undecided"
