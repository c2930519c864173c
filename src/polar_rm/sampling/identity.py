"""What the samples of a policy depend on: its settings, and for models of this machine the bytes of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polar_rm.common.checksums import FileFacts, describe_file
from polar_rm.common.files import read_json, write_json
from polar_rm.errors import PolarError
from polar_rm.model.language_models import model_folder
from polar_rm.sampling.base import Policy
from polar_rm.sampling.config import SamplingConfig

NAME = "models.json"
"""In the output folder: sizes, times and checksums of the files of local models, so that a run need not read them again."""

_WITHOUT_EFFECT = (".md", ".png", ".lock", ".log", ".py", ".pyc")  # beside a model; no code of a model's folder is ever run


def identities(config: SamplingConfig, *, keep: bool = False) -> dict[str, dict[str, Any]]:
    """Of each policy, as JSON. keep: note checksums in the output folder; a dry run writes nothing.

    A model's weights may change under one name, and samples of both would be mixed without a trace. A model that is not there
    has no checksum: its policy fails when it is opened.
    """
    known = _read(config.output / NAME)
    sums = {policy.model: _checksums(policy, known) for policy in config.policies if policy.IS_LOCAL}
    if keep and any(sums.values()):
        write_json(config.output / NAME, {model: files for model, files in sums.items() if files})
    found: dict[str, dict[str, Any]] = {}
    for policy in config.policies:
        weights = {name: facts["sha256"] for name, facts in sums.get(policy.model, {}).items()} if policy.IS_LOCAL else {}
        found[policy.name] = policy.settings(config.machine) | {"seed": config.seed} | ({"files": weights} if weights else {})
    return found


def _checksums(policy: Policy, known: dict[str, Any]) -> dict[str, Any]:
    """{name: {bytes, mtime_ns, sha256}} of the model's files; a file of the size and time that is noted is not read again.

    Of several GGUFs the named one counts, and folders in the model's folder (checkpoints of its training) do not.
    """
    try:
        folder = model_folder(policy.model)
    except PolarError:
        return {}
    before = known.get(policy.model, {})
    files: dict[str, Any] = {}
    gguf = getattr(policy, "gguf_file", None)
    for path in sorted(folder.iterdir()):
        name = path.name
        if not path.is_file() or path.suffix in _WITHOUT_EFFECT or name.startswith("."):
            continue
        if gguf is not None and path.suffix == ".gguf" and name != gguf:
            continue
        stat, noted = path.stat(), before.get(name, {})
        facts: FileFacts
        if (noted.get("bytes"), noted.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
            facts = {"bytes": noted["bytes"], "sha256": noted["sha256"]}
        else:
            facts = describe_file(path)
        files[name] = {**facts, "mtime_ns": stat.st_mtime_ns}
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.exists() else {}
    except PolarError:  # cut short: the checksums are made again
        return {}
