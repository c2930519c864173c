"""Every verb, called as by a user. A mistake gives one line on stderr and exit code 2, never a traceback."""

import json
import shutil
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import fakes, official, tiny
from support.commands import refused

from polar_rm import load
from polar_rm.model import weights
from polar_rm.model.reward_model import RewardModel
from polar_rm.parity import routes
from polar_rm.records import Comparison, count_rows
from polar_rm.scoring import files

PAIR = {"prompt": "p", "reference": "the fox", "chosen": "the quick fox", "rejected": "12 34", "subset": "x"}
SKIP = ("--on-bad-row", "skip")
RANKED = {"prompt": "p", "reference": "r", "candidates": ["a", "b"], "ranks": [0, 1]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    settings = tiny.EncoderSettings(max_length=128, max_response_length=32)
    tiny.reward_model(folder / "lm", settings=settings).save(folder / "model")
    return folder / "model"


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def changed(model, target, change):
    shutil.copytree(model, target)
    change(target)
    return target


@pytest.mark.plots
def test_score_then_evaluate_then_inspect(polar, model, tmp_path):
    items = write(tmp_path / "items.jsonl", *[{"prompt": "p", "reference": "r", "output": f"fox {i}"} for i in range(5)])
    code, _, error = polar("score", "--model", model, "--input", items, "--output", tmp_path / "scores.jsonl")
    assert code == 0, error
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5]
    assert len({row["reward"] for row in rows}) == 5

    pairs = write(tmp_path / "pairs.jsonl", PAIR, PAIR | {"prompt": "q", "subset": "y"})
    result = tmp_path / "out.json"
    code, table, error = polar(
        "evaluate", pairs, "--model", model, "--by", "subset", "--json", result, "--plot", tmp_path / "plot.png"
    )
    assert code == 0, error
    assert "accuracy" in table
    report = json.loads(result.read_text())
    assert (report["schema"], report["n_pairs"], set(report["by"])) == ("polar-rm/evaluation/2", 2, {"x", "y"})
    assert list(report["contenders"]) == [str(model), "length", "tfidf"]
    assert report["facts"][str(model)]["facts"]["encoder_hash"] == RewardModel.from_pretrained(model).encoder.hash
    assert (tmp_path / "plot.png").stat().st_size > 1000

    code, shown, _ = polar("inspect", pairs, "--row", 2, "--model", model)
    assert code == 0
    for expected in ("the fox", "<|reward|>", "[UNUSED_TOKEN_130]", "truncated", "position of the score"):
        assert expected in shown


def test_scores_are_continued_only_with_equal_inputs_and_settings(polar, model, tmp_path, monkeypatch):
    write(tmp_path / "items.jsonl", {"prompt": "p", "reference": "r", "output": "o"})
    identities = []
    monkeypatch.setattr(files, "score_file", lambda *arguments, identity, **options: iter([identities.append(identity) or 1]))
    for options in ((), ("--precision", "bf16"), ("--strip-prompt",), ("--row-tokens", "64")):
        assert polar("score", "--model", model, "--input", "items.jsonl", "--output", "s.jsonl", *options)[0] == 0
    first, precision, stripped, rows = identities
    assert first == rows and first not in (precision, stripped) and precision != stripped


def test_accepted_but_suspicious_rows_give_a_warning(polar, model, tmp_path):
    """H4."""
    prompt = "Why is the sky blue?"
    items = write(tmp_path / "items.jsonl", {"prompt": prompt, "reference": "r", "output": f"{prompt} It scatters."})
    code, _, error = polar("score", "--model", model, "--input", items, "--output", "s.jsonl")
    assert code == 0
    assert "warning: 1 row: 'output' begins with the whole text of the prompt" in " ".join(error.split())


def test_rows_without_a_reference_need_the_option(polar, model, tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", {key: PAIR[key] for key in ("prompt", "chosen", "rejected")})
    refused(polar("evaluate", pairs, "--model", model), "have no reference", "comparison 1", "--reference empty")
    assert polar("evaluate", pairs, "--model", model, "--reference", "empty")[0] == 0


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (RANKED | {"candidates": ["a"], "ranks": [0]}, "row 2: field 'candidates': expected a list of at least"),
        (RANKED | {"candidates": ["a", "a"]}, "row 2: field 'candidates[1]'"),
        (RANKED | {"ranks": [0]}, "row 2: field 'ranks': expected 2 ranks"),
        ('{"prompt"', "row 2: expected one JSON object a line"),
    ],
)
def test_bad_rows(polar, model, tmp_path, row, expected):
    pairs = write(tmp_path / "pairs.jsonl", PAIR, row)
    refused(polar("evaluate", pairs, "--model", model), pairs, expected)
    refused(polar("pretrain", f"model.resume_from={model}", f"data.train=[{pairs}]", "output=run"), pairs, expected)
    code, _, error = polar("pretrain", f"model.resume_from={model}", f"data.train=[{pairs}]", "output=run", *SKIP, "--dry-run")
    assert code == 0, error
    assert "1 bad rows of the train data were skipped" in error
    code, messages, _ = polar("evaluate", pairs, "--model", model, *SKIP)
    assert code == 0
    assert "1 bad rows were skipped" in " ".join(messages.split())
    [side_file] = tmp_path.glob("pairs.jsonl.*.rejected")
    assert json.loads(side_file.read_text())["row"] == 2


def test_bad_files(polar, model, tmp_path):
    empty = write(tmp_path / "empty.jsonl")
    refused(polar("evaluate", empty, "--model", model), empty, "is empty")
    refused(polar("score", "--model", model, "--input", empty, "--output", tmp_path / "o.jsonl"), empty, "is empty")
    incomplete = tmp_path / "incomplete.parquet"
    incomplete.write_bytes(b"PAR1" + b"\0" * 50)
    refused(polar("evaluate", incomplete, "--model", model), incomplete, "not a complete Parquet file")
    refused(polar("evaluate", tmp_path / "none.jsonl", "--model", model), "none.jsonl", "no such file")
    refused(polar("inspect", write(tmp_path / "one.jsonl", PAIR), "--row", 7, "--model", model), "the file has no row 7")


def test_the_path_of_the_result_is_checked_before_the_work(polar, model, tmp_path, monkeypatch):
    items = write(tmp_path / "items.jsonl", {"prompt": "p", "reference": "r", "output": "o"})
    refused(polar("score", "--model", model, "--input", items, "--output", items), items, "the input itself")
    pattern = tmp_path / "item*.jsonl"  # H14
    refused(polar("score", "--model", model, "--input", pattern, "--output", items), items, "this run writes this file")
    pairs = write(tmp_path / "pairs.jsonl", PAIR)
    monkeypatch.delattr(RewardModel, "from_pretrained")
    refused(polar("evaluate", pairs, "--model", model, "--json", tmp_path), tmp_path, "is a folder")
    refused(polar("evaluate", pairs, "--model", model, "--plot", "plot.pdf"), "plot.pdf", ".png, .svg")
    refused(polar("evaluate", pairs, "--model", model, "--json", pairs / "out.json"), "is not a folder")


def test_row_numbers_are_the_same_everywhere(polar, model, tmp_path):
    without_reference = {key: PAIR[key] for key in ("prompt", "chosen", "rejected")}
    pairs = write(tmp_path / "pairs.jsonl", "", PAIR, "", without_reference)
    assert polar("inspect", pairs, "--row", 2, "--model", model)[0] == 0
    refused(polar("inspect", pairs, "--row", 3, "--model", model), "the file has no row 3")
    refused(polar("inspect", pairs, "--row", 4, "--model", model), pairs, "row 4: the comparison has no reference")


def test_an_evaluation_reports_truncation_and_ties(polar, model, tmp_path):
    long = "fox " * 100
    pairs = write(tmp_path / "pairs.jsonl", PAIR, PAIR | {"chosen": long + "a", "rejected": long + "b"})
    code, _, error = polar("evaluate", pairs, "--model", model, "--json", tmp_path / "out.json")
    assert code == 0, error
    warnings = json.loads((tmp_path / "out.json").read_text())["warnings"]
    # Both sequences hold the prompt, the reference and 32 tokens of the answer; the rest of the answer was not read.
    encode = tiny.tokenizer().encode
    whole = [len(encode(text).ids) for text in (long + "a", long + "b")]
    tree = load(model).model.encoder.encode(Comparison("p", "the fox", (long + "a", long + "b"), (0, 1)))
    read = [len(tree.sequence(candidate)) for candidate in range(2)]
    removed = sum(whole) - 2 * 32
    total = sum(read) + removed
    share = f"{removed / total:.0%} of these sequences' {total:,} tokens was not read, 100% of it in outputs"
    assert f"{model}: 1 comparisons have a text that was truncated to the encoder's limits; {share}" in warnings
    assert f"{model}: 1 comparisons have candidates that the encoder makes equal: ties" in warnings


def test_bad_models(polar, model, tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", PAIR)

    def poison(folder):
        weights = load_file(folder / "model.safetensors")
        weights["score.weight"].fill_(float("nan"))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def another_encoder(folder):
        config = json.loads((folder / "config.json").read_text())
        config["polar"]["encoder"]["settings"]["max_length"] += 1
        (folder / "config.json").write_text(json.dumps(config))

    refused(polar("evaluate", pairs, "--model", changed(model, tmp_path / "nan", poison)), "'score.weight' holds NaN")
    other = changed(model, tmp_path / "other", another_encoder)
    refused(polar("evaluate", pairs, "--model", other), other, "the encoder's settings changed")
    refused(polar("evaluate", pairs, "--model", tmp_path / "missing"), "missing")


def test_bad_options(polar, model, tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", PAIR)
    base = ("pretrain", f"model.resume_from={model}", f"data.train=[{pairs}]", "output=run")
    refused(polar(*base, "optim.learning_rate=1"), "unknown key 'optim.learning_rate'")
    refused(polar(*base, "batchsize=1"), "unknown key 'batchsize'; did you mean 'batch_size'?")
    refused(polar(*base, "data.on_bad_row=skip"), "unknown key 'data.on_bad_row'; did you mean 'on_bad_row'?")
    refused(polar(*base, "optim.lr=high"), "optim.lr=high: optim.lr")
    refused(polar("pretrain", "missing.yaml"), "missing.yaml: No such file")
    if not torch.cuda.is_available():
        refused(polar(*base, "device=cuda"), "no CUDA device")
        refused(polar("evaluate", pairs, "--model", model, "--device", "cuda"), "no CUDA device")
        refused(polar(*base, "attention=tree_flex"), "tree_flex")


def test_long_prompts_and_special_tokens_are_handled_and_reported(polar, model, tmp_path):
    item = {"prompt": "fox " * 500, "reference": "a <|reward|> b", "output": "c [UNUSED_TOKEN_130] d"}
    items = write(tmp_path / "items.jsonl", item)
    assert polar("score", "--model", model, "--input", items, "--output", tmp_path / "scores.jsonl")[0] == 0
    row = json.loads((tmp_path / "scores.jsonl").read_text())
    assert row["truncated"] is True
    assert row["n_tokens"] <= 128


def test_a_disk_that_is_full_while_saving(polar, model, tmp_path, monkeypatch):
    pairs = write(tmp_path / "pairs.jsonl", PAIR, PAIR)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    arguments = (f"model.resume_from={model}", f"data.train=[{pairs}]", "output=run", "batch_size=2", "log.tensorboard=false")
    refused(polar("finetune", *arguments), "run/model", "No space left on device")
    assert not (tmp_path / "run/model").exists()
    monkeypatch.undo()


def test_folders_that_can_not_be_written(polar, model, tmp_path):
    (tmp_path / "file").touch()
    items = write(tmp_path / "items.jsonl", {"prompt": "p", "reference": "r", "output": "o"})
    refused(polar("score", "--model", model, "--input", items, "--output", tmp_path / "file/scores.jsonl"), tmp_path / "file")


def test_convert_there_and_back(polar, tmp_path):
    source = official.checkpoint(tmp_path / "official")
    code, shown, error = polar("convert", source, tmp_path / "native", "--dry-run")
    assert code == 0, error
    for text in ("InternLM2ForRewardModel -> LlamaForSequenceClassification", "[UNUSED_TOKEN_130] = ", "float16", "plain RoPE"):
        assert text in shown
    assert not (tmp_path / "native").exists()
    assert polar("convert", source, tmp_path / "native", "--dtype", "float32")[0] == 0
    assert polar("convert", tmp_path / "native", tmp_path / "back", "--to", "internlm2")[0] == 0
    refused(polar("convert", source, tmp_path / "native"), tmp_path / "native", "exists already")
    refused(polar("convert", official.checkpoint(tmp_path / "biased", bias=True), tmp_path / "new"), "biased", "biases")
    refused(polar("convert", tmp_path / "nowhere", tmp_path / "new"), "nowhere")
    assert not (tmp_path / "new").exists()


def test_parity_passes_and_fails_by_its_exit_code(polar, model, tmp_path, monkeypatch):
    items = write(tmp_path / "items.jsonl", {"prompt": "p", "reference": "the fox", "output": "a dog"})
    code, shown, error = polar("parity", model, items, "--json", tmp_path / "parity.json")
    for line in ("loading: 0/1", "trainer, packed trees: 0/", "scorer: 0/", "v1/score: 0/", "transformers: 0/"):
        assert line in error, error
    assert code == 0, error
    for expected in ("transformers", "trainer, packed trees", "scorer", "1 of 1 texts"):
        assert expected in shown
    assert json.loads((tmp_path / "parity.json").read_text())["ok"] is True
    refused(polar("parity", model, items, "--against", "somewhere"), "somewhere", "URL")
    with fakes.running(fakes.make(encode=RewardModel.from_pretrained(model).encoder, api_key="k")) as url:
        arguments = ("parity", model, items, "--against", url)
        refused(polar(*arguments), "HTTP 401")
        refused(polar(*arguments, "--api-key-env", "REWARD_KEY"), "REWARD_KEY", "not set")
        monkeypatch.setenv("REWARD_KEY", "k")
        code, shown, _ = polar(*arguments, "--api-key-env", "REWARD_KEY")
        assert code == 1 and "/v1/score" in shown  # the server has a fake model
    monkeypatch.setattr(routes, "_trainer", lambda model, items: [float("nan")] * len(items))
    code, shown, _ = polar("parity", model, items)
    assert code == 1
    assert "DIFFERS" in shown


def test_dry_run_shows_config_and_plan_and_trains_nothing(polar, model, tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", PAIR, PAIR)
    code, shown, error = polar("pretrain", f"model.resume_from={model}", f"data.train=[{pairs}]", "output=run", "--dry-run")
    assert code == 0, error
    for expected in ("betas:", "steps", "tokens", "memory", "2 comparisons, 2 pairs"):
        assert expected in shown
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize("verb", ["sample", "references"])
def test_a_dry_run_takes_the_speed_that_it_is_told(polar, tmp_path, verb):
    prompts = write(tmp_path / "p.jsonl", {"prompt": "fox", "prompt_id": "1"}, {"prompt": "dog", "prompt_id": "2"})
    policy = "{name: a, family: f, kind: chat, samples: 1, decoding: {max_new_tokens: 6}, "
    policy += "backend: openai, model: m, base_url: 'http://127.0.0.1:1'}"
    arguments = {
        "sample": [f"prompts={prompts}", "source=s", f"policies=[{policy}]"],
        "references": [f"inputs=[{prompts}]", f"reference={{kind: policy, policy: {policy}}}"],
    }[verb]
    for options, expected in ((["--tokens-per-second", "2"], "about 0:00:06"), ([], "time unknown")):
        code, shown, error = polar(verb, *arguments, "output=run", "--dry-run", *options)
        assert code == 0, error
        assert expected in " ".join(shown.split())


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_of_all_ranks_of_all_nodes_one_prints_and_writes_the_result(polar, model, tmp_path, monkeypatch, options):
    from polar_rm.training import trainer

    monkeypatch.setattr(trainer, "train", lambda config, **_: {"loss": 0.5})
    pairs = write(tmp_path / "pairs.jsonl", PAIR, PAIR)
    arguments = ["pretrain", f"model.resume_from={model}", f"data.train=[{pairs}]", "output=run", "--json", "j.json", *options]
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first rank of its node
    for rank in (8, 0):
        monkeypatch.setenv("RANK", str(rank))
        code, shown, error = polar(*arguments)
        assert code == 0, error
        assert bool(shown or "the model is in" in error) == (tmp_path / "j.json").exists() == (rank == 0)


@pytest.mark.parametrize(
    "verb",
    "sample corpus inspect pretrain finetune scaling rft quickstart score serve evaluate calibrate parity convert config".split(),
)
def test_every_verb_explains_itself_with_an_example(polar, verb):
    code, shown, _ = polar(verb, "--help")
    assert code == 0
    assert f"polar {verb}" in shown


def test_calibrate_then_score_with_probabilities(polar, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    rows = [
        {"prompt": f"q {number}", "reference": "the fox", "chosen": f"the quick fox {number}", "rejected": f"{number} 34"}
        for number in range(40)
    ]
    # Of a model that was never trained: an order that its rewards decide in three of four pairs.
    scorer = load(folder)
    for number, row in enumerate(rows):
        texts = [row["chosen"], row["rejected"]]
        rewards = scorer.score_outputs(prompt=row["prompt"], reference=row["reference"], outputs=texts)
        if (rewards[0] < rewards[1]) != (number % 4 == 0):
            row["chosen"], row["rejected"] = texts[::-1]
    pairs = write(tmp_path / "pairs.jsonl", *rows)
    items = write(tmp_path / "items.jsonl", {"prompt": "p", "reference": "the fox", "output": "the fox"})
    score = ("score", "--model", folder, "--input", items, "--transform", "probability", "--output")
    refused(polar(*score, "scores.jsonl"), "'probability' needs a calibration card", "polar calibrate MODEL PAIRS writes one")
    code, shown, error = polar("calibrate", folder, pairs, "--json", "report.json", "--plot", "plot.svg")
    assert code == 0, error
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == "polar-rm/calibration-report/1" and report["n_pairs"] == 40
    assert f"{report['temperature']:.4g}" in shown and "the most certain pairs" in shown
    assert "the scale is uncertain" in shown and f"the scale is in {folder / 'calibration.json'}" in error
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    assert polar(*score, "scores.jsonl")[0] == 0
    row = json.loads((tmp_path / "scores.jsonl").read_text())
    assert (row["score"], row["probability"], row["deviation"], row["anchor"]) == (0.5, 0.5, 0.0, row["reward"])

    before = (folder / "calibration.json").read_bytes()
    refused(polar("calibrate", folder, write(tmp_path / "one.jsonl", rows[0])), "all pairs belong to one prompt")
    refused(
        polar("calibrate", folder, write(tmp_path / "none.jsonl", PAIR | {"reference": None})),
        "have no reference",
        "comparison 1",
    )
    refused(polar("calibrate", folder, pairs, "--plot", "plot.pdf"), "plot.pdf", ".png, .svg")
    refused(polar("calibrate", tmp_path, pairs), tmp_path, "config.json")
    assert (folder / "calibration.json").read_bytes() == before
    (folder / "config.json").write_text((model / "config.json").read_text().replace('"hash": "', '"hash": "0'))
    refused(polar(*score, "other.jsonl"), "the card belongs to another model (different encoder)")


@pytest.mark.parametrize("name", ["run[/b]", "run[bold]"])
def test_an_output_folder_is_no_markup(polar, model, tmp_path, name):
    """F13."""
    (tmp_path / name).mkdir(parents=True)
    items = write(tmp_path / name / "items.jsonl", {"prompt": "p", "reference": "r", "output": "o"}, {"prompt": "p"})
    scores = tmp_path / name / "scores.jsonl"
    code, _, error = polar("score", "--model", model, "--input", items, "--output", scores, "--on-bad-row", "skip")
    assert code == 0, error
    assert f"1 items scored into {scores}" in error
    assert f"1 bad rows were skipped, see {scores.parent}" in error
    pairs = write(tmp_path / "pairs.jsonl", PAIR, PAIR | {"prompt": "q"})
    base = (f"model.resume_from={model}", f"data.train=[{pairs}]", "batch_size=2", "log.tensorboard=false")
    code, _, error = polar("pretrain", *base, f"output={name}/rm")
    assert code == 0, error
    assert f"the model is in {name}/rm/model" in error
    refused(polar("score", "--model", model, "--input", name, "--output", "s.jsonl"), f"{name}/rm/data/")


def test_old_names_of_options_suggest_the_new_ones(polar, model, tmp_path):
    items = write(tmp_path / "items.jsonl", {"prompt": "p", "reference": "r", "output": "o"})
    base = ("score", "--model", model, "--input", items, "--output", tmp_path / "s.jsonl")
    for old, new in (("--dtype", "--precision"), ("--token-budget", "--row-tokens")):
        for arguments in ((old, "1"), (f"{old}=1",)):
            code, _, error = polar(*base, *arguments)
            assert code == 2
            assert f"No such option: {old}. Did you mean {new}?" in " ".join(error.split())
    code, _, error = polar("inspect", items, "--model", model, "--dtype", "x")  # a verb with neither option
    assert code == 2
    assert "--precision" not in error
    code, _, error = polar(*base, "--precision", "bf16", "--row-tokens", "64")
    assert code == 0, error


def test_an_option_given_twice_is_refused_because_the_last_would_win_silently(polar, model, tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", PAIR)
    items = write(tmp_path / "items.jsonl", {"prompt": "p", "reference": "r", "output": "o"})
    for arguments, option in (
        (("evaluate", pairs, "--model", model, "--by", "subset", "--by=id"), "--by is given 2 times"),
        (("score", "--model", model, "--input", items, "--input", items, "--output", "s.jsonl"), "--input is given 2 times"),
        (("score", "--model", model, "--model", model, "--model", model), "--model is given 3 times"),
    ):
        code, _, error = polar(*arguments)
        assert code == 2 and option in " ".join(error.split())
    code, _, error = polar("score", "--model", model, "--input", items, "--output", "s.jsonl", "--strip-prompt", "--strip-prompt")
    assert code == 0, error
    code, _, error = polar("evaluate", pairs, "--model", f"a={model}", "--model", f"b={model}")
    assert code == 0, error


def test_every_option_of_serve_reaches_the_server_also_where_it_is_zero(polar, model, monkeypatch):
    from polar_rm.serving import address, launch

    served = []
    monkeypatch.setattr(launch, "serve", lambda config, listener, key: served.append(config))
    monkeypatch.setattr(address, "bind", lambda host, port: nullcontext())
    assert polar("serve", "--model", model, "--port", 0, "--max-items", 3)[0] == 0
    assert polar("serve", "port=8000", "--model", model, "--allow-open", "--allowed-host", "a.b")[0] == 0
    first, second = served
    assert (first.model, first.port, first.max_items, first.allow_open) == (model, 0, 3, False)
    assert (second.port, second.max_items, second.allow_open, second.allowed_hosts) == (8000, 4096, True, ("a.b",))


def test_scoring_tells_how_far_it_is(polar, model, tmp_path, monkeypatch):
    """A bar with items a second on a terminal; in a log a line now and then."""
    items = write(tmp_path / "i.jsonl", *({"prompt": f"p{n}", "reference": "r", "output": "o"} for n in range(5)))
    code, _, error = polar("score", "--model", model, "--input", items, "--output", "s.jsonl")
    assert code == 0
    assert error.splitlines()[-2:] == ["scoring: 5/5", "5 items scored into s.jsonl"]


def test_rows_are_counted_where_that_is_cheap(tmp_path):
    rows = [{"prompt": "p", "reference": "r", "output": str(n)} for n in range(7)]
    assert count_rows(write(tmp_path / "i.jsonl", *rows)) == 7
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    assert count_rows(tmp_path / "i.parquet") == 7
    (tmp_path / "i.csv").write_text("prompt,reference,output\n")
    assert count_rows(tmp_path / "i.csv") is None
    (tmp_path / "broken.parquet").write_bytes(b"x")
    assert count_rows(tmp_path / "broken.parquet") is None


def test_each_file_of_a_folder_gets_a_file_of_scores(polar, model, tmp_path):
    rows = [{"prompt": f"p{n}", "reference": "r", "output": "o"} for n in range(5)]
    (tmp_path / "in/b").mkdir(parents=True)
    write(tmp_path / "in/a.jsonl", *rows[:2])
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "in/b/c.parquet")
    command = ("score", "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out")
    code, _, error = polar(*command)
    assert code == 0 and error.splitlines()[-2:] == [
        "scoring: 2/5, a.jsonl, 1 of 2",
        f"5 items scored into {tmp_path / 'out'}",
    ], error
    expected = write(tmp_path / "all.jsonl", *rows)
    assert polar("score", "--model", model, "--input", expected, "--output", tmp_path / "all.scores.jsonl")[0] == 0
    whole = [json.loads(line)["reward"] for line in (tmp_path / "all.scores.jsonl").read_text().splitlines()]
    parts = [json.loads(line) for name in ("a.jsonl", "b/c.jsonl") for line in (tmp_path / "out" / name).read_text().splitlines()]
    assert [row["reward"] for row in parts] == pytest.approx(whole, abs=1e-5)
    assert [row["row"] for row in parts] == [1, 2, 1, 2, 3]
    # The same command goes on with what is missing.
    before = (tmp_path / "out/a.jsonl").stat().st_mtime_ns
    (tmp_path / "out/b/c.jsonl").unlink()
    code, _, error = polar(*command)
    assert code == 0 and "3 items scored" in error and "(1 of 2 files were finished)" in error
    assert (tmp_path / "out/a.jsonl").stat().st_mtime_ns == before
    write(tmp_path / "in/a.jsonl", *rows[:3])
    refused(polar(*command), "it holds scores of other settings (inputs.a.jsonl")
    refused(polar(*command[:-1], tmp_path / "o.jsonl"), "the input means 2 files; name a folder")
    write(tmp_path / "in/a.ndjson", *rows[:1])
    refused(polar(*command[:-1], tmp_path / "other"), "the scores of both would be called")
