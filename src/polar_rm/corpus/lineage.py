"""The policies of trajectories, and how they are related."""

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
    """Known facts about policies, by name.

    They are the family, the model (or the run that the policy is a checkpoint of), the wrapper that joins its texts to prompts,
    and the licence of its texts.
    """

    families: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    wrappers: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)

    def distance(self, policy: str, other: str) -> Distance | Literal["unknown"]:
        """The distance of two policies. A policy without a model counts as a model of its own, with the policy's name."""
        if self.models.get(policy, policy) == self.models.get(other, other):
            return "same_model"
        family = self.families.get(policy)
        if family is None or other not in self.families:
            return "unknown"
        return "same_family" if family == self.families[other] else "other_family"


def by_pattern(policy: str, patterns: Mapping[str, str]) -> str | None:
    """The value of a mapping for a policy: by its name, or else by the first matching pattern; None if there is none."""
    if policy in patterns:
        return patterns[policy]
    return next((value for pattern, value in patterns.items() if fnmatchcase(policy, pattern)), None)


def lineage(
    config: CorpusConfig, files: Iterable[Path], policies: Sequence[str], rows: Sequence[dict[str, dict[str, list[str]]]]
) -> Lineage:
    """The lineage of the policies, from the settings, or else from the rows, or else from the manifests of ``polar sample``.

    rows: for each part, column -> policy -> values in its rows.

    Raises:
        PolarError: rows of one policy disagree, and the settings don't decide.
    """
    manifest = {entry["policy"]: entry for entry in _sampled_policies(files)}

    def known(name: str, settings: dict[str, str], column: str) -> dict[str, str]:
        from_rows: dict[str, str] = {}
        for policy, value in ((policy, v) for part in rows for policy, values in part.get(name, {}).items() for v in values):
            if from_rows.setdefault(policy, value) != value and policy in policies and by_pattern(policy, settings) is None:
                raise PolarError(f"policy {policy!r} has the {name} {from_rows[policy]!r} in some rows and {value!r} in others")
        each = {
            policy: by_pattern(policy, settings) or from_rows.get(policy) or manifest.get(policy, {}).get(column)
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
    """Policy -> its model, with one name for all policies of one model.

    parents: policy -> the policy, training run or model that it is a checkpoint of. A policy without a parent, and its
    checkpoints, have the model that it was sampled from, which the manifest of ``polar sample`` names.
    """
    models = {name: str(entry["model"]) for name, entry in manifest.items() if entry.get("model")}

    def model_of(policy: str, descendants: tuple[str, ...]) -> str | None:
        parent = parents.get(policy) or manifest.get(policy, {}).get("checkpoint_of")
        if parent is None:
            return models.get(policy)
        path = (*descendants, policy)
        if parent in path:  # the policy itself, or a cycle, which counts as one model
            return min(path[path.index(parent) :])
        return model_of(parent, path) or parent

    each = {policy: model_of(policy, ()) for policy in policies}
    return {policy: model for policy, model in each.items() if model is not None}


def _sampled_policies(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The policies in manifests of ``polar sample``, which are in the files' folders or in the folders that contain these."""
    for folder in dict.fromkeys(folder for file in files for folder in (file.parent, file.parent.parent)):
        try:
            content = read_json(folder / "manifest.json")
        except PolarError:  # there is none, or it belongs to another program
            continue
        if str(content.get("schema", "")).startswith("polar-rm/trajectories/") and isinstance(content.get("policies"), list):
            yield from (entry for entry in content["policies"] if isinstance(entry, dict) and "policy" in entry)
