"""Official checkpoints where a reward model is named (A3): converted once, exactly, into polar's cache."""

import json
import subprocess
import sys
import threading

import pytest
from support import hub as stand_in
from support import official

import polar_rm
from polar_rm.common.locks import owned
from polar_rm.conversion.convert import convert
from polar_rm.conversion.official import native_folder
from polar_rm.errors import MachineFailure, PolarError, UnsupportedModel
from polar_rm.records import ScoreItem

ITEM = {"prompt": "What is the capital of China?", "reference": "Beijing.", "outputs": ["Beijing.", "Shanghai."]}


@pytest.fixture
def folder(tmp_path):
    return official.checkpoint(tmp_path / "POLAR-7B")


def test_an_id_scores_as_the_official_code_does(hub, folder, capsys):
    commit = hub.add_folder("internlm/POLAR-7B", folder, **{"modeling_internlm2.py": b"raise SystemExit"})
    scorer = polar_rm.load("internlm/POLAR-7B")
    scores = scorer.score_outputs(**ITEM)
    values = official.config()
    for score, output in zip(scores, ITEM["outputs"], strict=True):
        item = ScoreItem(prompt=ITEM["prompt"], reference=ITEM["reference"], output=output)
        assert score == pytest.approx(official.reward(values, official.weights(values), official.client_ids(item)), abs=2e-3)
    printed = capsys.readouterr().err
    assert "internlm/POLAR-7B: an official checkpoint, which is converted once, exactly, into" in printed
    target = native_folder("internlm/POLAR-7B")
    assert target.name.startswith(f"internlm--POLAR-7B-{commit}")
    assert "its conversion" in capsys.readouterr().err
    card = (target / "README.md").read_text()
    assert "base_model: internlm/POLAR-7B\n" in card and "* base: internlm/POLAR-7B\n" in card
    assert not any(name.endswith(".py") for name in hub.downloads())


def test_a_folder_is_converted_once_for_its_contents(hub, folder, tmp_path, capsys):
    first = native_folder(folder)
    convert(folder, tmp_path / "by-hand")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / name).read_bytes() == (tmp_path / "by-hand" / name).read_bytes()
    written = (first / "config.json").stat().st_mtime_ns
    assert native_folder(folder) == first
    assert (first / "config.json").stat().st_mtime_ns == written
    values = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(values))
    assert native_folder(folder) != first


def test_a_second_process_waits_for_the_conversion(hub, folder, monkeypatch, capsys):
    target = native_folder(folder)
    for path in sorted(target.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    target.rmdir()
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom polar_rm.common.locks import owned\n"
            "with owned(sys.argv[1], 'convert'):\n    print('owned', flush=True)\n    sys.stdin.read()",
            str(target),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout.readline() == b"owned\n"
    found = []
    thread = threading.Thread(target=lambda: found.append(native_folder(folder)), daemon=True)
    thread.start()
    thread.join(1.5)
    assert thread.is_alive() and not target.exists()
    owner.communicate(timeout=60)
    thread.join(60)
    assert found == [target] and (target / "config.json").is_file()
    assert "waiting for its conversion" in capsys.readouterr().err
    with owned(target, "test"):
        pass


def test_a_checkpoint_that_is_not_exact_is_refused_by_name(hub, tmp_path):
    bad = official.checkpoint(tmp_path / "bad", bias=True)
    with pytest.raises(UnsupportedModel, match="bias"):
        native_folder(bad)
    assert not list((tmp_path / "polar").glob("converted/*/config.json"))


def test_a_cache_that_is_not_writable_is_named(hub, folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLAR_CACHE", str(tmp_path / "file"))
    with pytest.raises((MachineFailure, PolarError), match="conversion is cached"):
        native_folder(folder)


@pytest.mark.slow
def test_the_command_scores_an_id_as_its_conversion(hub, folder, tmp_path):
    """Downloaded, converted and scored by id, in a process of its own, offline the second time."""
    hub.add_folder("internlm/POLAR-7B", folder)
    rows = [{"prompt": ITEM["prompt"], "reference": ITEM["reference"], "output": output} for output in ITEM["outputs"]]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rewards(model, name, **variables):
        command = [sys.executable, "-m", "polar_rm", "score", "--model", model, "--input", "items.jsonl", "--output", name]
        process = subprocess.run(
            command, cwd=tmp_path, env=stand_in.environment(variables), capture_output=True, text=True, timeout=200, check=False
        )
        assert process.returncode == 0, process.stderr
        return [json.loads(line)["reward"] for line in (tmp_path / name).read_text().splitlines()], process.stderr

    by_id, printed = rewards("internlm/POLAR-7B", "a.jsonl")
    assert "downloading internlm/POLAR-7B from" in printed and "converted once, exactly" in printed
    offline, printed = rewards("internlm/POLAR-7B", "b.jsonl", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set: taken from the cache" in printed
    convert(folder, tmp_path / "by-hand")
    assert by_id == offline == rewards("by-hand", "c.jsonl")[0]
