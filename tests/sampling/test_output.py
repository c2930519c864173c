"""The files that a run leaves in its folder, also when it is killed, and who may write there."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support import stub, tiny
from support.owners import owned_elsewhere
from support.sampling_runs import TEMPLATE, config, rows, served

from polar_rm.common.config import to_yaml
from polar_rm.common.manifests import check_manifest
from polar_rm.errors import Damaged, PolarError
from polar_rm.sampling import output as output_module
from polar_rm.sampling.estimate import estimate
from polar_rm.sampling.runner import run_sampling, sample


def manifest(settings):
    return json.loads((settings.output / "manifest.json").read_text())


def test_a_kill_while_files_are_written_leaves_the_earlier_ones_whole(tmp_path, server, monkeypatch):
    """F8."""
    sample(served(tmp_path, server.url, prompts=20, buckets=2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/trajectories").iterdir()}
    real, written = output_module.write_records, []

    def stop_at_the_third(path, records):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        return real(path, records)

    monkeypatch.setattr(output_module, "write_records", stop_at_the_third)
    more = served(tmp_path, server.url, prompts=40, buckets=9)
    with pytest.raises(KeyboardInterrupt):
        sample(more)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/trajectories").iterdir()} == before
    check_manifest(tmp_path / "out", full=True)
    monkeypatch.setattr(output_module, "write_records", real)
    folder = sample(more)
    assert len(list(folder.iterdir())) == len(manifest(more)["files"]) == 9
    check_manifest(tmp_path / "out", full=True)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("step", ["write_manifest", "remove_stale"])
def test_a_kill_between_files_and_manifest_is_told_to_readers(tmp_path, server, monkeypatch, step):
    """F8: with another number of buckets the folder then holds files of both runs; a reader must not take all of them."""
    sample(served(tmp_path, server.url, prompts=20, buckets=3))

    def stop(*_):
        raise KeyboardInterrupt

    more = served(tmp_path, server.url, prompts=30, buckets=5)
    monkeypatch.setattr(f"polar_rm.sampling.runner.{step}", stop)
    with pytest.raises(KeyboardInterrupt):
        sample(more)
    with pytest.raises(Damaged, match="does not list it.*run the command that wrote it again"):
        check_manifest(tmp_path / "out")
    monkeypatch.undo()
    sample(more)
    check_manifest(tmp_path / "out")


@pytest.mark.slow
def test_whatever_moment_a_kill_hits_a_reader_is_told_or_right(tmp_path, server):
    """F8: SIGKILL while files are written."""
    settings = served(tmp_path, server.url, server.url, prompts=200, buckets=63, changes={"concurrency": 16})
    run_sampling(settings.model_copy(update={"buckets": 1}))
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    watch = f"""
import os, signal, threading
from pathlib import Path
from polar_rm.common import config
from polar_rm.sampling import output, runner
from polar_rm.sampling.config import SamplingConfig
count, real = 0, output.write_records
def write(path, records):
    global count
    count += 1
    if count == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, records)
output.write_records = write
runner.run_sampling(config.load_config(SamplingConfig, [{str(tmp_path / "config.yaml")!r}]))
"""
    for kill_at in (1, 20, 40):
        environment = {**os.environ, "KILL_AT": str(kill_at), "PYTHONPATH": os.pathsep.join(sys.path)}
        assert subprocess.run([sys.executable, "-c", watch], env=environment, check=False).returncode == -signal.SIGKILL
        check_manifest(settings.output, full=True)  # the files of the run before: one file, 800 rows
        assert manifest(settings)["n_trajectories"] == 800
    assert len(rows(sample(settings))) == 800
    assert len(manifest(settings)["files"]) > 50


def test_a_second_run_is_refused_by_name_and_a_dry_run_is_not(tmp_path, server):
    """F1, B28."""
    settings = served(tmp_path, server.url)
    with owned_elsewhere(settings.output, "sample"):
        with pytest.raises(PolarError, match=rf"out: in use by polar sample on .*, process {os.getpid()}, since"):
            sample(settings)
        assert not settings.output.exists()
        assert estimate(settings)[0].requests == 10
    assert not server.bodies


def test_a_dry_run_leaves_the_folder_as_it_is(tmp_path):
    """B28, with a local model, whose checksums a real run writes down."""
    folder = tiny.causal_lm(tmp_path / "lm")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = config(tmp_path, folder)
    estimate(settings)
    assert not settings.output.exists()
    sample(settings)
    before = {path: path.stat().st_mtime_ns for path in settings.output.rglob("*")}
    assert estimate(settings)[0].requests == 0
    assert {path: path.stat().st_mtime_ns for path in settings.output.rglob("*")} == before


def test_another_model_under_the_same_name_is_seen(tmp_path):
    """F10."""
    folder = tiny.causal_lm(tmp_path / "lm")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = config(tmp_path, folder)
    sample(settings)
    assert run_sampling(settings).policies[0].asked == 0
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for ask in (sample, estimate):
        with pytest.raises(PolarError, match=r"policy 'chat' with other settings \(files.model.safetensors: \"[0-9a-f]+"):
            ask(settings)
    (folder / "README.md").write_text("a note")
    content[-1] ^= 1
    weights.write_bytes(content)
    assert run_sampling(settings).policies[0].asked == 0


def test_the_last_line_says_why_there_is_no_sample(tmp_path, server):
    """21: the reason of the failures, not only their kind."""
    server.respond = lambda *_: stub.error(400, "Unsupported parameter: use 'max_completion_tokens' instead")
    settings = served(tmp_path, server.url, prompts=1)
    with pytest.raises(PolarError, match="a: 2 of 2 missing, 2 refused .HTTP 400: Unsupported .*'max_completion_tokens' instead"):
        sample(settings)
    report = run_sampling(settings)
    assert "use 'max_completion_tokens' instead" in report.describe().splitlines()[-1]
    fixed = served(tmp_path, server.url, prompts=1, changes={"max_tokens_key": "max_completion_tokens"})
    server.respond = lambda body, _: stub.good(body)
    assert len(rows(sample(fixed))) == 2
    assert server.bodies[-1]["max_completion_tokens"] == 6 and "max_tokens" not in server.bodies[-1]
