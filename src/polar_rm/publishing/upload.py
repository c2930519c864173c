"""The upload of a model's folder to the Hugging Face Hub, through ``huggingface_hub``."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from polar_rm.common.hub import endpoint, host, masked
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError

# What a saved model consists of. Logs, optimiser states and notes that lie in the folder stay here.
_PATTERNS = (
    "README.md",
    "LICENSE*",
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "calibration.json",
    "calibration/*",
    "internlm2/*",
    ".eval_results/*.yaml",
)


def files_of(folder: Path) -> list[str]:
    """The files of a saved model that are published, relative to its folder, sorted."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if any(_matches(name, pattern) for pattern in _PATTERNS))


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def check_name(repo: str) -> None:
    """Check the name of a repository before anything is written.

    Raises:
        PolarError: it is not ``owner/name``.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is public, but not in __all__

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PolarError(f"{repo}: {first_line(error)}") from None
    if "/" not in repo:
        raise PolarError(f"{repo}: expected the name of a repository, owner/name")


def upload(folder: Path, repo: str, *, private: bool = False) -> str:
    """Create the repository if it is new, upload the model in one commit, and return the commit's address.

    Raises:
        PolarError: nobody is logged in, the Hub refuses, or it can't be reached. The message has no token.
    """
    from huggingface_hub import HfApi, get_token

    check_name(repo)
    if get_token() is None:
        raise PolarError(f"{repo}: to publish, log in first: hf auth login, or set HF_TOKEN to a token that may write")
    api = HfApi(endpoint=endpoint())
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=files_of(folder), commit_message="Upload by polar publish"
        )
    except Exception as error:  # types differ from release to release
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = {401: "the token is refused", 403: "the token may not write there"}.get(status or 0)
        raise PolarError(f"{repo}: {host()}: {reason or masked(first_line(error))}") from None
    return str(commit.commit_url)
