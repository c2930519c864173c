"""Which policies stand behind the trajectories, and how they are related."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from polar_rm.common.files import read_json
from polar_rm.corpus.config import CorpusConfig, Distance
from polar_rm.errors import PolarError


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is known of policies, by name: family, model (or the run that it is a checkpoint of), how its texts join the prompt,
    and under which licence they may be used."""

    families: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    wrappers: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)

    def distance(self, policy: str, other: str) -> Distance | Literal["unknown"]:
        """How near two policies are. A policy that names no model is one of its own, which others may be checkpoints of."""
        if self.models.get(policy, policy) == self.models.get(other, other):
            return "same_model"
        family = self.families.get(policy)
        if family is None or other not in self.families:
            return "unknown"
        return "same_family" if family == self.families[other] else "other_family"


def by_pattern(policy: str, patterns: Mapping[str, str]) -> str | None:
    """What a mapping says about a policy: by its name, or else by the first pattern that it matches."""
    if policy in patterns:
        return patterns[policy]
    return next((value for pattern, value in patterns.items() if fnmatchcase(policy, pattern)), None)


def lineage(
    config: CorpusConfig, files: Iterable[Path], policies: Sequence[str], rows: Sequence[dict[str, dict[str, list[str]]]]
) -> Lineage:
    """What is known of each policy: by the settings, or else by the rows, where they agree, or else by the sampling manifests."""
    manifest = {entry["policy"]: entry for entry in _sampled_policies(files)}

    def known(name: str, settings: dict[str, str], column: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for policy, value in ((policy, v) for part in rows for policy, values in part.get(name, {}).items() for v in values):
            if found.setdefault(policy, value) != value and policy in policies and by_pattern(policy, settings) is None:
                raise PolarError(f"policy {policy!r} has the {name} {found[policy]!r} in some rows and {value!r} in others")
        each = {
            policy: by_pattern(policy, settings) or found.get(policy) or manifest.get(policy, {}).get(column)
            for policy in policies
        }
        return {policy: value for policy, value in each.items() if value is not None}

    return Lineage(
        families=known("family", config.families, "family"),
        models=_models(policies, known("checkpoint_of", config.models, "checkpoint_of"), manifest),
        wrappers=known("wrapper", {"*": config.wrapper} if config.wrapper else {}, "wrapper"),
        licences=known("licence", {}, "licence"),
    )


def _models(policies: Sequence[str], parents: Mapping[str, str], manifest: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Policy -> its model, so that policies of one model have one name for it.

    parents: what a policy is a checkpoint of, which may be a policy, a training run or a model. A policy that is a checkpoint of
    nothing has the model that it was sampled from, which the manifest of ``polar sample`` names; so do its checkpoints.
    """
    models = {name: str(entry["model"]) for name, entry in manifest.items() if entry.get("model")}

    def model_of(policy: str, below: tuple[str, ...]) -> str | None:
        parent = parents.get(policy) or manifest.get(policy, {}).get("checkpoint_of")
        if parent is None:
            return models.get(policy)
        line = (*below, policy)
        if parent in line:  # its own model, or a circle, which is one model by whatever name
            return min(line[line.index(parent) :])
        return model_of(parent, line) or parent

    found = {policy: model_of(policy, ()) for policy in policies}
    return {policy: model for policy, model in found.items() if model is not None}


def _sampled_policies(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The policies in manifests of ``polar sample``, which lie beside the files or a folder above."""
    for folder in dict.fromkeys(folder for file in files for folder in (file.parent, file.parent.parent)):
        try:
            content = read_json(folder / "manifest.json")
        except PolarError:  # none, or another program's
            continue
        if str(content.get("schema", "")).startswith("polar-rm/trajectories/") and isinstance(content.get("policies"), list):
            yield from (entry for entry in content["policies"] if isinstance(entry, dict) and "policy" in entry)
