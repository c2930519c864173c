"""Snapshots of models and data sets from the Hugging Face Hub, through ``huggingface_hub`` and in its cache.

Only files that we read are downloaded: safetensors, tokenizers and JSON of models, rows of data sets. Nothing that comes from
the Hub is ever run. ``huggingface_hub`` is imported on use, and finds the token in its own places (``HF_TOKEN``, ``hf auth
login``); no message repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from polar_rm.common.files import disk_refusal
from polar_rm.common.progress import repeatedly
from polar_rm.common.text import first_line
from polar_rm.errors import MachineFailure, PolarError

RepoKind = Literal["model", "dataset"]

TOKENIZER_FILES = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt", "README.md", "LICENSE*")
# Not those in other folders of a repository (exports, checkpoints) and of other programs (consolidated.safetensors).
WEIGHTS = ("model*.safetensors", "calibration/*.safetensors")
_UNREACHABLE = {"ConnectError", "ConnectionError", "TimeoutException", "Timeout", "TransportError", "OfflineModeIsEnabled"}
_PAUSES_S = (5.0, 10.0, 20.0, 30.0)  # between lines about a download
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".ckpt")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a repository in the cache. note: what a user should know, for instance that the Hub was not asked."""

    repo: str
    revision: str
    commit: str
    folder: Path
    host: str
    note: str = ""


def download(
    repo: str, revision: str | None, kind: RepoKind, patterns: tuple[str, ...], announce: Callable[[str], None]
) -> Snapshot:
    """The files of a repository that match ``patterns``, from the cache where it holds them.

    revision: a branch, a tag or a commit; by default ``main``. If the Hub can't be reached, or ``HF_HUB_OFFLINE`` is set, the
    cache is used as it is. announce: takes a line before a download, and while it lasts what has arrived, ever more seldom.

    Raises:
        PolarError: there is no such repository or revision, it is private or gated, or neither the Hub nor the cache has it.
        MachineFailure: the disk is full; the same command continues the download.
    """
    name = f"{repo}@{revision}" if revision else repo
    commit, reason, n_bytes = _ask(repo, revision, kind, patterns, name, announce)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined]

    watched = _arrivals(_cache_folder(repo, kind) / "blobs", n_bytes, lambda text: announce(f"downloading {name}: {text}"))
    try:
        with watched if n_bytes and are_progress_bars_disabled() else nullcontext():
            folder = snapshot_download(
                repo,
                repo_type=kind,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=commit is None,
                endpoint=endpoint(),
            )
    except Exception as error:  # its types differ from release to release
        if refusal := _disk_refusal(error, Path(constants.HF_HUB_CACHE)):
            raise MachineFailure(f"{name}: could not be downloaded into {constants.HF_HUB_CACHE}: {refusal}") from None
        if commit is None:
            raise PolarError(f"{name}: the cache holds no complete copy of it, and {reason}") from None
        raise _explained(error, name, repo, revision, kind) from None
    if commit is None and WEIGHTS[0] in patterns and not any(Path(folder).glob(WEIGHTS[0])):
        # Older releases take what is there for a complete copy; here only the tokenizer was downloaded before.
        raise PolarError(f"{name}: the cache holds it without its weights, and {reason}")
    found = Path(folder).name
    note = f"{reason}: taken from the cache, commit {found[:12]}" if commit is None else ""
    return Snapshot(repo, revision or "main", found, Path(folder), host(), note)


def is_cached(repo: str) -> bool:
    """Whether the cache holds anything of this model; the Hub is not asked."""
    if not (os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or (Path.home() / ".cache/huggingface").is_dir()):
        return False
    return _cache_folder(repo, "model").is_dir()


def _cache_folder(repo: str, kind: RepoKind) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"


@contextmanager
def _arrivals(folder: Path, n_bytes: int, announce: Callable[[str], None]) -> Iterator[None]:
    """Within the block, say now and then how many of ``n_bytes`` have arrived in a folder of the cache.

    Of an interrupted download the part counts that is there already.
    """

    def size(pattern: str) -> int:
        found = 0
        for file in folder.glob(pattern):
            with suppress(FileNotFoundError):  # finished files are renamed
                found += file.stat().st_size
        return found

    complete = size("*") - size("*.incomplete")
    pauses = chain(_PAUSES_S, repeat(_PAUSES_S[-1]))

    def tell() -> None:
        arrived = min(size("*") - complete, n_bytes)
        announce(f"{arrived / n_bytes:.0%} of {n_bytes / 2**20:,.1f} MiB")

    with repeatedly(tell, lambda: next(pauses)):
        yield


def _ask(
    repo: str, revision: str | None, kind: RepoKind, patterns: tuple[str, ...], name: str, announce: Callable[[str], None]
) -> tuple[str | None, str, int]:
    """The commit of a revision on the Hub, or None; why the Hub can't be asked; and how many bytes the cache lacks."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set", 0
    try:
        api = HfApi(endpoint=endpoint())
        info: Any = api.repo_info(repo, repo_type=kind, revision=revision, timeout=30, files_metadata=True)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status >= 500:
            return None, f"{host()} answers with an error ({status})", 0
        if status or not _is_unreachable(error):
            raise _explained(error, name, repo, revision, kind) from None
        return None, f"{host()} can't be reached ({type(error).__name__})", 0
    sizes = {str(sibling.rfilename): sibling.size or 0 for sibling in info.siblings or []}
    if kind == "model" and WEIGHTS[0] in patterns:
        _check_weights(list(sizes), name)
    snapshot = _cache_folder(repo, kind) / "snapshots" / str(info.sha)
    wanted = list(filter_repo_objects(list(sizes), allow_patterns=list(patterns)))
    if not wanted:
        raise PolarError(f"{name}: the repository holds no {' or '.join(patterns)} file")
    missing = [each for each in wanted if not (snapshot / each).exists()]
    n_bytes = sum(sizes[each] for each in missing)
    if missing:
        size = f"{n_bytes / 2**20:,.1f} MiB"
        announce(f"downloading {name} from {host()}: {len(missing)} files, {size}, commit {str(info.sha)[:12]}")
    return str(info.sha), "", n_bytes


def _check_weights(names: list[str], name: str) -> None:
    """Refuse a repository without safetensors before anything is downloaded."""
    if any(fnmatch(each, WEIGHTS[0]) for each in names):
        return
    other = next((each for each in names if each.endswith(_OTHER_WEIGHTS)), None)
    held = f", only files such as {other}, which are not read: loading them can run code" if other else ""
    if other and other.endswith(".gguf"):
        held = f", only GGUF such as {other}: download it, and name the folder"
    raise PolarError(f"{name}: the repository holds no {WEIGHTS[0]}{held}")


def _explained(error: Exception, name: str, repo: str, revision: str | None, kind: RepoKind) -> PolarError:
    """One line about a refusal of the Hub."""
    from huggingface_hub import errors

    hub = host()
    if isinstance(error, errors.GatedRepoError):
        page = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        return PolarError(f"{name}: access to it is restricted: ask for it on {page}, then log in (hf auth login, or HF_TOKEN)")
    if isinstance(error, errors.RevisionNotFoundError):
        return PolarError(f"{name}: {repo} has no revision {revision!r} on {hub}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError):
        what = "data set" if kind == "dataset" else "model"
        return PolarError(f"{name}: no such {what} on {hub}, or a private one: for those log in (hf auth login, or HF_TOKEN)")
    if status in (401, 403):
        return PolarError(f"{name}: {hub} refuses the token ({status}): log in again (hf auth login, or HF_TOKEN)")
    if isinstance(error, errors.HFValidationError):
        return PolarError(f"{name}: not a name of the Hub: expected owner/name")
    if status is None and _is_unreachable(error):
        return PolarError(f"{name}: {hub} can't be reached any more; the same command continues the download")
    return PolarError(f"{name}: {hub}: {masked(first_line(error))}")


def masked(text: str) -> str:
    """The text without the token of the Hub, which a server may repeat in its answer."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether no answer came. The HTTP library, and so the types of its errors, differ from release to release."""
    while error is not None:
        if {each.__name__ for each in type(error).__mro__} & _UNREACHABLE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _disk_refusal(error: BaseException | None, folder: Path) -> str | None:
    import errno

    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            return disk_refusal(error, folder)
        error = error.__cause__ or error.__context__
    return None


def endpoint() -> str | None:
    """The address of the Hub from ``HF_ENDPOINT``, for calls of ``huggingface_hub``; None for its default."""
    return os.environ.get("HF_ENDPOINT") or None


def host() -> str:
    """Name and port of the Hub, without credentials."""
    from huggingface_hub import constants

    return urlsplit(endpoint() or constants.ENDPOINT).netloc.rpartition("@")[2]


def record(snapshot: Snapshot) -> dict[str, Any]:
    """What a run records about a snapshot."""
    return {"hub": snapshot.host, "repo": snapshot.repo, "revision": snapshot.revision, "commit": snapshot.commit}
