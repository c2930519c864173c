"""Names of models and data, against a stand-in of the Hugging Face Hub (A2, A3)."""

import json
import re
import socket
import threading
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from support import hub as stand_in
from support.full_disks import full_after

from polar_rm.common import sources
from polar_rm.common.paths import check_data, check_model
from polar_rm.common.provenance import versions
from polar_rm.errors import MachineFailure, PolarError

MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"s" * 5000,
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"raise SystemExit",
    "checkpoint-10/model.safetensors": b"other",
    "consolidated.safetensors": b"other",
    "calibration/uncertainty.safetensors": b"u",
}


@pytest.mark.parametrize("name", ["org/model", "hf:org/model", "org/model@main"])
def test_a_model_of_the_hub_is_a_folder_of_safe_files(hub, name, capsys):
    commit = hub.repository("org/model").commit(MODEL)
    folder = sources.model_folder(name)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "calibration/uncertainty.safetensors",
    }
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert not {path for path in hub.downloads() if path.endswith((".bin", ".py"))}
    assert versions()["sources"][name] == {"hub": hub.url[7:], "repo": "org/model", "revision": "main", "commit": commit}
    assert (
        f"downloading {name.removeprefix('hf:')} from {hub.url[7:]}: 4 files, 0.0 MiB, commit {commit[:12]}"
        in capsys.readouterr().err
    )


def test_a_download_says_how_much_has_arrived(hub, monkeypatch, capsys):
    weights = bytes(64 << 20)
    hub.repository("org/model").commit(MODEL | {"model.safetensors": weights})
    hub.hold, lines = threading.Event(), []
    monkeypatch.setattr("polar_rm.common.hub._PAUSES_S", (0.05,))
    monkeypatch.setattr("huggingface_hub.utils.are_progress_bars_disabled", lambda: True)
    hold = hub.hold

    def announce(text):
        lines.append(text)
        if len(lines) > 1 and text != "downloading org/model: 0% of 64.0 MiB":
            hold.set()

    monkeypatch.setattr(sources, "note", announce)
    folder = sources.model_folder("org/model")
    assert (folder / "model.safetensors").read_bytes() == weights
    shares = [int(found[1]) for line in lines if (found := re.fullmatch(r"downloading org/model: (\d+)% of 64.0 MiB", line))]
    assert len(shares) == len(lines) - 1 and shares == sorted(shares) and 0 < next(filter(None, shares)) <= 50


def test_a_name_means_one_commit_during_a_process(hub, monkeypatch):
    first = hub.repository("org/model").commit(MODEL)
    assert sources.model_folder("org/model").name == first
    second = hub.repository("org/model").commit(MODEL | {"model.safetensors": b"t" * 5000})
    assert sources.model_folder("org/model").name == first
    stand_in.forget(monkeypatch)
    assert sources.model_folder("org/model").name == second
    assert sources.model_folder(f"org/model@{first}").name == first


def test_only_the_tokenizer_is_downloaded_where_only_it_is_read(hub):
    hub.repository("org/model").commit(MODEL)
    folder = sources.model_folder("org/model", weights=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    assert sources.model_folder("org/model") == folder
    assert (folder / "model.safetensors").exists()


def test_offline_takes_the_cache_and_says_so(hub, monkeypatch, capsys):
    commit = hub.repository("org/model").commit(MODEL)
    sources.model_folder("org/model")
    stand_in.forget(monkeypatch)
    capsys.readouterr()
    n_requests = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sources.model_folder("org/model").name == commit
    assert f"org/model: HF_HUB_OFFLINE is set: taken from the cache, commit {commit[:12]}" in capsys.readouterr().err
    assert versions()["sources"]["org/model"]["commit"] == commit
    assert len(hub.requests) == n_requests
    with pytest.raises(PolarError, match="org/other: the cache holds no complete copy of it, and HF_HUB_OFFLINE is set"):
        sources.model_folder("org/other")


def test_a_copy_without_weights_is_not_taken_offline(hub, monkeypatch):
    hub.repository("org/model").commit(MODEL)
    folder = sources.model_folder("org/model", weights=False)
    stand_in.forget(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sources.model_folder("org/model", weights=False) == folder
    with pytest.raises(PolarError, match="the cache holds (no complete copy of it|it without its weights), and HF_HUB_OFFLINE"):
        sources.model_folder("org/model")


def test_an_unreachable_hub_is_named_or_the_cache_is_taken(hub, monkeypatch, capsys):
    commit = hub.repository("org/model").commit(MODEL)
    sources.model_folder("org/model")
    stand_in.forget(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert sources.model_folder("org/model").name == commit
    assert "can't be reached (ConnectError): taken from the cache" in capsys.readouterr().err
    with pytest.raises(
        PolarError, match=r"org/other: the cache holds no complete copy of it, and 127.0.0.1:\d+ can't be reached"
    ):
        sources.model_folder("org/other")


def test_a_hub_with_an_error_is_as_an_unreachable_one(hub):
    hub.status = 503
    with pytest.raises(PolarError, match=r"answers with an error \(503\)"):
        sources.model_folder("org/model")


def test_a_broken_download_is_continued(hub, monkeypatch):
    """The library asks again from where it broke off, and what is there is not sent twice."""
    content = bytes(range(256)) * 400
    hub.repository("org/model").commit(MODEL | {"model.safetensors": content})
    hub.cut_after = 30_000
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # whole chunks are kept
    folder = sources.model_folder("org/model")
    assert (folder / "model.safetensors").read_bytes() == content
    ranges = [{key.lower(): value for key, value in headers.items()}.get("range") for _, _, headers in hub.requests]
    assert "bytes=30000-" in ranges


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("org/missing", None, "no such model on HOST, or a private one: for those log in"),
        ("org/missing", stand_in.TOKEN, "no such model on HOST, or a private one"),
        ("org/private", None, "no such model on HOST, or a private one: for those log in"),
        ("org/gated", stand_in.TOKEN, "access to it is restricted: ask for it on HOST/org/gated"),
        ("org/private", "hf_wrongTokenOfSomeone", "HOST refuses the token"),
        ("echo/token", "hf_wrongTokenOfSomeone", "HOST refuses the token"),
        ("org/open@v9", None, "org/open has no revision 'v9' on HOST"),
        ("org/open@" + "0" * 40, None, "org/open has no revision"),
        (
            "org/pickled",
            None,
            "the repository holds no model*.safetensors, only files such as pytorch_model.bin, which are not read",
        ),
        ("hf:nonsense", None, "expected hf:owner/name"),
        ("hf:a/b/c", None, "expected hf:owner/name"),
    ],
)
def test_refusals_are_one_clear_line_without_the_token(hub, monkeypatch, capsys, name, token, message):
    hub.repository("org/open").commit(MODEL)
    hub.repository("org/pickled").commit({"config.json": b"{}", "pytorch_model.bin": b"x"})
    for access in ("private", "gated"):
        hub.repository(f"org/{access}").commit(MODEL)
        hub.repository(f"org/{access}").access = access
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PolarError) as caught:
        sources.model_folder(name)
    text = str(caught.value)
    assert message.replace("HOST", hub.url[7:]) in text
    assert text.startswith(name) and "\n" not in text
    printed = capsys.readouterr()
    assert not token or token not in text + printed.out + printed.err


def test_a_private_model_is_read_with_the_token(hub, monkeypatch, capsys):
    commit = hub.repository("org/private").commit(MODEL)
    hub.repository("org/private").access = "private"
    monkeypatch.setenv("HF_TOKEN", stand_in.TOKEN)
    assert sources.model_folder("org/private").name == commit
    assert stand_in.TOKEN not in capsys.readouterr().err + json.dumps(versions())


def test_a_full_disk_is_named_and_the_download_continues_later(hub):
    hub.repository("org/model").commit(MODEL | {"model.safetensors": b"s" * 500_000})
    with (
        full_after(100_000),
        pytest.raises(MachineFailure, match=r"org/model: could not be downloaded into .*cache: .*MiB are free"),
    ):
        sources.model_folder("org/model")
    assert (sources.model_folder("org/model") / "model.safetensors").stat().st_size == 500_000


def test_a_folder_wins_over_an_id_and_says_so(hub, tmp_path, monkeypatch, capsys):
    commit = hub.repository("org/model").commit(MODEL)
    sources.model_folder("org/model")
    (tmp_path / "org/model").mkdir(parents=True)
    stand_in.forget(monkeypatch)
    capsys.readouterr()
    assert str(sources.model_folder("org/model")) == "org/model"
    assert "org/model: the folder is taken; hf:org/model is the model of the Hub" in capsys.readouterr().err
    assert sources.model_folder("hf:org/model").name == commit


def test_a_mistyped_path_is_not_asked_for(hub, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(PolarError, match="runs/modle: no such folder of a model"):
        check_model("runs/modle")
    assert hub.requests == []


def test_the_folder_of_a_run_is_told_with_the_model_in_it(tmp_path):
    for inner in ("ft/model", "ft/earlier", "grid/a/model", "grid/b/model", "empty"):
        (tmp_path / inner).mkdir(parents=True)
        if inner != "empty":
            (tmp_path / inner / "config.json").write_text("{}")
    ft, grid = tmp_path / "ft", tmp_path / "grid"
    for name, end in {
        "ft": f"did you mean {ft}/model or {ft}/earlier?",
        "grid": f"did you mean {grid}/a/model or {grid}/b/model?",
        "empty": "it holds no config.json",
    }.items():
        with pytest.raises(PolarError) as error:
            check_model(tmp_path / name)
        assert str(error.value).endswith(end)


ROWS = b'{"prompt": "p", "reference": "r", "output": "o"}\n'


def test_data_of_the_hub(hub):
    repository = hub.repository("org/rows", "dataset")
    first = repository.commit({"data/train-0.jsonl": ROWS, "data/train-1.jsonl": ROWS, "rows.py": b"evil", "README.md": b"#"})
    folder = check_data("hf:datasets/org/rows")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == ["data/train-0.jsonl", "data/train-1.jsonl"]
    assert versions()["sources"]["hf:datasets/org/rows"]["commit"] == first
    repository.commit({"data/train-0.jsonl": ROWS * 2, "data/test-0.jsonl": ROWS})
    assert check_data(f"hf:datasets/org/rows@{first}/data/train-1.jsonl").read_bytes() == ROWS
    assert check_data("hf://datasets/org/rows@main/data/train-*").name == "train-*"


def test_several_splits_of_a_data_set_are_never_mixed(hub):
    hub.repository("org/rows", "dataset").commit({"data/train-0.jsonl": ROWS, "data/test-0.jsonl": ROWS})
    with pytest.raises(
        PolarError, match="it holds several splits; name the files of one, such as hf:datasets/org/rows/data/test-0"
    ):
        check_data("hf:datasets/org/rows")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:datasets/org/none", "no such data set on"),
        ("hf:org/rows", "expected hf:datasets/owner/name"),
        ("hf:datasets/org/rows/../../x", "must not hold .."),
        ("hf:datasets/org/rows/no.jsonl", "the repository holds no no.jsonl"),
        ("hf:datasets/org/rows@v2", "has no revision 'v2'"),
        ("s3://bucket/rows.jsonl", "pip install s3fs"),
        ("gs://bucket/rows.jsonl", "pip install gcsfs"),
        ("nonsense://bucket/rows.jsonl", "unknown kind of address"),
        ("memory://empty/rows.jsonl", "no such file or folder"),
    ],
)
def test_bad_names_of_data(hub, name, message):
    hub.repository("org/rows", "dataset").commit({"rows.jsonl": ROWS})
    with pytest.raises(PolarError) as caught:
        check_data(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_addresses_are_fetched_once_for_each_state(hub, monkeypatch, capsys):
    from fsspec.implementations.memory import MemoryFileSystem

    system = MemoryFileSystem()
    system.pipe({"/bucket/a/one.jsonl": ROWS, "/bucket/a/deep/two.jsonl": ROWS * 2, "/bucket/a/notes.py": b"evil"})
    folder = check_data("memory://bucket/a")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == ["deep/two.jsonl", "one.jsonl"]
    assert check_data("memory://bucket/a/one.jsonl").read_bytes() == ROWS
    assert versions()["sources"]["memory://bucket/a"]["files"] == 2
    stand_in.forget(monkeypatch)
    capsys.readouterr()
    assert check_data("memory://bucket/a") == folder
    assert "downloading" not in capsys.readouterr().err
    system.pipe("/bucket/a/one.jsonl", ROWS * 3)
    stand_in.forget(monkeypatch)
    changed = check_data("memory://bucket/a")
    assert changed != folder and (changed / "one.jsonl").read_bytes() == ROWS * 3


@pytest.mark.parametrize("address", ["s3://bucket/rows", "s3://bucket/rows.jsonl", "s3://bucket/*.jsonl"])
def test_a_bucket_without_permission_is_one_line_without_a_signature(hub, monkeypatch, capsys, address):
    """fsspec leaves out what it may not list, so that a bucket without permission looked like an empty one."""
    from fsspec.registry import _registry
    from fsspec.spec import AbstractFileSystem

    class Denied(AbstractFileSystem):
        protocol = "s3"
        cachable = False

        def ls(self, path, detail=True, **options):
            raise PermissionError("Access Denied", "https://bucket.test/rows?X-Amz-Signature=secret")

    monkeypatch.setitem(_registry, "s3", Denied)
    with pytest.raises(PolarError) as caught:
        check_data(address)
    assert str(caught.value) == f"{address}: it can't be read: PermissionError"
    assert "secret" not in capsys.readouterr().err


def test_paths_and_configs_keep_an_address(hub):
    from pathlib import Path

    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().pipe("/bucket/p/one.jsonl", ROWS)
    assert check_data(Path("memory://bucket/p/one.jsonl")).read_bytes() == ROWS  # a Path drops the second slash


def test_the_installed_library_is_new_enough():
    assert int(huggingface_hub.__version__.split(".")[0]) >= 1 or huggingface_hub.__version__ >= "0.34"


def test_data_in_a_package_is_found_wherever_data_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "some_package"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('a package is located, but not imported')")
    (folder / "data/a.jsonl").write_text("{}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert check_data("package:some_package/data/a.jsonl") == folder / "data/a.jsonl"
    assert check_data("package:some_package/data/*.jsonl") == folder / "data/*.jsonl"
    for name, reason in {
        "package:some_package/data/b.jsonl": "no such file",
        "package:some_package": "expected package:NAME/path",
        "package:some_package/../a.jsonl": "without ..",
        "package:no_such_package/a.jsonl": "no_such_package is not installed; known packages with models: package:demo",
        "package:dmo/a.jsonl": "dmo is not installed; did you mean package:demo?",
    }.items():
        with pytest.raises(PolarError, match=reason):
            check_data(name)
    assert check_data("package:polar_rm/quickstart/data/prompts.jsonl").is_file()


def test_nothing_is_written_into_a_package(tmp_path):
    sources.check_own(tmp_path)
    for name in ("package:demo", "package:yaml"):
        with pytest.raises(PolarError, match="nothing is written into an installed package; copy the folder and name the copy"):
            sources.check_own(sources.model_folder(name))
    with pytest.raises(PolarError, match="nothing is written into an installed package"):  # by its path, too
        sources.check_own(Path(huggingface_hub.__file__).parent)


def test_the_short_name_of_a_runs_model_is_the_runs(tmp_path):
    assert sources.model_name(tmp_path / "rm/model") == "rm"
    assert sources.model_name(tmp_path / "rm") == "rm"
    assert sources.model_name(tmp_path / "models--org--rm/snapshots/abc") == "org--rm-abc"
