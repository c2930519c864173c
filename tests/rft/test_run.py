"""The parts of ``polar rft`` that need no TRL: the owner of the output folder, and the checkpoint from which a run continues."""

import json
import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import tiny
from support.owners import owned_elsewhere

from polar_rm.common.config import load_config
from polar_rm.common.files import claim_folder
from polar_rm.errors import ConfigError, InUse, PolarError
from polar_rm.rft import run as run_module
from polar_rm.rft.checkpoints import checkpoints, last_checkpoint, remove_incomplete_checkpoints
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import read_data
from polar_rm.rft.policy import describe_machine, trainer_arguments
from polar_rm.rft.run import identity


def config(folder, **changes):
    values = {"policy.model": folder / "lm", "reward.source": folder / "rm", "output": folder / "o"}
    values |= {"data": f"[{folder}/rows.jsonl]"}
    return load_config(RftConfig, [], [f"{name}={value}" for name, value in (values | changes).items()])


@pytest.fixture
def folder(tmp_path):
    tiny.causal_lm(tmp_path / "lm")
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm/model.safetensors").write_bytes(b"weights")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "p", "reference": "r"}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "key"), [("rows.jsonl", "data"), ("lm/model.safetensors", "policy"), ("rm/model.safetensors", "reward")]
)
def test_changed_files_under_the_same_name_are_another_run(folder, file, key):
    """F10."""
    settings = config(folder)
    claim_folder(settings.output, identity(settings), "a fine-tuned policy")
    claim_folder(settings.output, identity(settings), "a fine-tuned policy")
    with (folder / file).open("ab") as changed:
        changed.write(b"\n")
    with pytest.raises(PolarError, match=rf"other settings \(files.{key}: .* there, .* now\)"):
        claim_folder(settings.output, identity(settings), "a fine-tuned policy")


def test_a_reward_server_is_known_by_its_address_and_its_encoder_by_its_files(folder):
    served = config(folder, **{"reward.source": "http://127.0.0.1:9"})
    assert identity(served)["files"]["reward"] is None
    with_encoder = config(folder, **{"reward.source": "http://127.0.0.1:9", "reward.encoder": folder / "rm"})
    assert identity(with_encoder)["files"]["reward"] == identity(config(folder))["files"]["reward"]


def test_files_in_the_output_folder_are_no_data(folder):
    """H1."""
    (folder / "o").mkdir()
    (folder / "rows.jsonl").rename(folder / "o/rows.jsonl")
    with pytest.raises(PolarError, match=r"rows\.jsonl: it lies in .*/o, where this run writes"):
        read_data(config(folder, data=f"[{folder}/o/rows.jsonl]"))


@pytest.fixture
def started(monkeypatch):
    """Runs up to the training, without TRL: the data of each."""
    runs = []
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(GRPOConfig=None, __spec__="installed"))
    monkeypatch.setattr(run_module, "trainer_arguments", lambda *_: SimpleNamespace(beta=0.1, max_completion_length=8))
    monkeypatch.setattr(run_module, "_run", lambda job, is_first: runs.append(job.data) or {})
    monkeypatch.setattr(type(config(Path("x")).reward), "open", lambda self: None)
    return runs


def test_a_second_process_is_refused_by_name_and_changes_nothing(folder, started):
    """F1: not even the file of its bad rows is written."""
    with (folder / "rows.jsonl").open("a") as rows:
        rows.write("{}\n")
    settings = config(folder, on_bad_row="skip")
    with owned_elsewhere(settings.output, "rft"):
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(InUse, match="o: in use by polar rft on .*, process "):
            run_module.run(settings)
        assert sorted(path.name for path in folder.iterdir()) == before
    assert started == []
    run_module.run(settings)
    assert len(started) == 1


def test_skipped_rows_are_counted_and_kept_beside_the_output(folder, started, monkeypatch, caplog):
    """The first run had no folder for them, and ended there; with several processes only the first writes them."""
    with (folder / "rows.jsonl").open("a") as rows:
        rows.write("{}\n")
    settings = config(folder, on_bad_row="skip")
    monkeypatch.setenv("RANK", "1")
    run_module.run(settings)
    assert not (folder / "o.rejected").exists() and not settings.output.exists()
    monkeypatch.setenv("RANK", "0")
    for _ in range(2):
        run_module.run(settings)
        [line] = (folder / "o.rejected").read_text().splitlines()
        assert json.loads(line)["row"] == 2
    assert [len(data.train) for data in started] == [1, 1, 1]
    assert f"1 bad rows were skipped, see {folder}/o.rejected" in caplog.text
    assert [path.name for path in settings.output.iterdir()] == ["settings.json"]


def test_an_incomplete_checkpoint_is_skipped_and_removed(tmp_path, caplog):
    """B15, F10: the run was killed while TRL wrote the newest checkpoint."""
    assert last_checkpoint(tmp_path) is None
    for step, state in ((5, "{}"), (10, "{}"), (20, None), (30, '{"step": 3')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-best").mkdir()  # a folder of the user
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    remove_incomplete_checkpoints(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    assert (tmp_path / "checkpoint-best").exists()
    assert all(f"checkpoint-{step}: removed, because it is incomplete" in caplog.text for step in (20, 30))


def test_a_seed_that_numpy_does_not_take_is_refused(folder):
    """B14."""
    with pytest.raises(ConfigError, match="seed=-1: seed: input should be greater than or equal to 0, not -1"):
        config(folder, seed=-1)


@dataclass
class FakeArguments:
    """TRL's settings, of which only these are looked at."""

    output_dir: str
    bf16: bool
    report_to: str
    logging_steps: int
    disable_tqdm: bool
    use_cpu: bool = False
    fsdp: str = ""
    deepspeed: str | None = None
    world_size = 1


def test_processes_that_the_trainer_does_not_see_are_told(monkeypatch):
    """Each of them would train, and all would write into one folder."""
    arguments = trainer_arguments(FakeArguments, {"logging_steps": 3}, {"output_dir": "o"})
    assert (arguments.logging_steps, arguments.report_to, arguments.output_dir) == (3, "none", "o")
    assert arguments.use_cpu == (not torch.cuda.is_available() and not torch.backends.mps.is_available())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="trainer: 2 processes were started, but TRL sees 1; without GPUs set use_cpu"):
        trainer_arguments(FakeArguments, {}, {"output_dir": "o"})
    with pytest.raises(ConfigError, match="there.deepspeed: |there: fsdp and deepspeed are not supported"):
        trainer_arguments(FakeArguments, {"deepspeed": "x"}, {"output_dir": "o"}, "there")


@pytest.mark.parametrize(
    ("keys", "device", "use_cpu", "words"),
    [
        ({}, "cpu", True, "cpu (trainer.use_cpu), bfloat16"),
        ({"fp16": True}, "cuda", False, "cuda, float16"),
        ({"bf16": False}, "cuda", False, "cuda, float32"),
        ({"use_cpu": True}, "cuda", True, "cpu (trainer.use_cpu), bfloat16"),
        ({"use_cpu": False}, "cpu", False, "cpu, bfloat16"),
    ],
)
def test_a_machine_without_a_gpu_is_told_to_the_trainer(monkeypatch, keys, device, use_cpu, words):
    """TRL refused: "Your setup doesn't support bf16/gpu. You need to assign use_cpu"."""
    monkeypatch.setattr("polar_rm.rft.policy.pick_device", lambda name: device)
    monkeypatch.setattr("polar_rm.rft.policy.compute_dtype", lambda name, device: torch.bfloat16)
    kind = make_dataclass("Arguments", [("fp16", bool, False)], bases=(FakeArguments,))
    assert trainer_arguments(kind, keys, {"output_dir": "o"}).use_cpu is use_cpu
    assert describe_machine(keys) == words
