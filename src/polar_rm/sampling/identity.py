"""What the samples of a policy depend on: its settings and, for local models, the contents of the model's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polar_rm.common.checksums import FileFacts, describe_file
from polar_rm.common.files import read_json, write_json
from polar_rm.common.sources import model_folder
from polar_rm.errors import PolarError
from polar_rm.sampling.base import Policy
from polar_rm.sampling.config import SamplingConfig

NAME = "models.json"
"""A file in the output folder: sizes, times and checksums of the files of local models. Runs reuse it instead of reading them."""

_IGNORED_SUFFIXES = (".md", ".png", ".lock", ".log", ".py", ".pyc")  # no code in a model's folder is ever run


def identities(config: SamplingConfig, *, keep: bool = False) -> dict[str, dict[str, Any]]:
    """The identity of each policy, as JSON. keep: write the checksums to the output folder; a dry run writes nothing.

    A model's weights may change under the same name; without checksums, samples of both would be mixed unnoticed. A missing model
    has no checksum: its policy fails when it is opened.
    """
    saved = _read(config.output / NAME)
    sums = {policy.model: _checksums(policy, saved) for policy in config.policies if policy.IS_LOCAL}
    if keep and any(sums.values()):
        write_json(config.output / NAME, {model: files for model, files in sums.items() if files})
    result: dict[str, dict[str, Any]] = {}
    for policy in config.policies:
        weights = {name: facts["sha256"] for name, facts in sums.get(policy.model, {}).items()} if policy.IS_LOCAL else {}
        result[policy.name] = policy.settings(config.machine) | {"seed": config.seed} | ({"files": weights} if weights else {})
    return result


def _checksums(policy: Policy, saved: dict[str, Any]) -> dict[str, Any]:
    """{name: {bytes, mtime_ns, sha256}} of the model's files. A file with the saved size and time is not read again.

    Of several GGUF files only the named one counts. Subfolders (checkpoints of the model's training) do not count.
    """
    try:
        folder = model_folder(policy.model)
    except PolarError:
        return {}
    before = saved.get(policy.model, {})
    files: dict[str, Any] = {}
    gguf = getattr(policy, "gguf_file", None)
    for path in sorted(folder.iterdir()):
        name = path.name
        if not path.is_file() or path.suffix in _IGNORED_SUFFIXES or name.startswith("."):
            continue
        if gguf is not None and path.suffix == ".gguf" and name != gguf:
            continue
        stat, earlier = path.stat(), before.get(name, {})
        facts: FileFacts
        if (earlier.get("bytes"), earlier.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
            facts = {"bytes": earlier["bytes"], "sha256": earlier["sha256"]}
        else:
            facts = describe_file(path)
        files[name] = {**facts, "mtime_ns": stat.st_mtime_ns}
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.exists() else {}
    except PolarError:  # the file is incomplete: compute the checksums again
        return {}
