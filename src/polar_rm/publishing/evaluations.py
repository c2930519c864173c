"""The results of ``polar evaluate --json`` that belong to a model, for its card and for ``.eval_results`` of the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.common.files import read_json
from polar_rm.common.sources import snapshot_source
from polar_rm.errors import PolarError

_SCHEMAS = ("polar-rm/evaluation/", "polar-rm/suite/")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One accuracy. data: a name without local folders. dataset, revision: of a data set of the Hub. ci95: of the accuracy."""

    data: str
    reference: str
    n: int
    accuracy: float
    ci95: tuple[float, float] | None = None
    dataset: str | None = None
    revision: str | None = None

    def shown(self) -> str:
        """The accuracy with its interval."""
        interval = f" [{self.ci95[0]:.3f}, {self.ci95[1]:.3f}]" if self.ci95 else ""
        return f"{self.accuracy:.3f}{interval}"


def read_evaluation(path: Path, model: Path, encoder_hash: str) -> Evaluation:
    """The model's accuracy in a report.

    Raises:
        PolarError: the file is no report of ``polar evaluate``, or this model is none of its contenders.
    """
    report = read_json(path)
    if not str(report.get("schema", "")).startswith(_SCHEMAS[0]):
        raise PolarError(f"{path}: expected a report of polar evaluate --json, not {report.get('schema')!r}")
    try:
        facts = {name: (each.get("source"), each["facts"].get("encoder_hash")) for name, each in report["facts"].items()}
        own = [name for name, (source, used) in facts.items() if source and Path(source).resolve() == model.resolve()]
        if len(own) != 1:
            raise PolarError(f"{path}: {model} is none of its contenders ({', '.join(facts)}): evaluate this folder")
        if facts[own[0]][1] != encoder_hash:
            raise PolarError(f"{path}: it was made with another encoder ({facts[own[0]][1]}, now {encoder_hash}): evaluate again")
        measure, files = report["contenders"][own[0]], report["data"]
        interval = measure["ci95"]
        found = snapshot_source(files[0]["path"], "dataset") if len(files) == 1 else None
        dataset, revision = found or (None, None)
        data = dataset or ", ".join("/".join(Path(file["path"]).parts[-2:]) for file in files)
        if limit := report.get("limit"):  # a part is no result of the benchmark
            data, dataset = f"{data}, the first {int(limit):,}", None
        return Evaluation(
            data,
            str(report["reference"]["mode"]),
            int(report["n_pairs"]),
            float(measure["accuracy"]),
            (float(interval[0]), float(interval[1])) if interval else None,
            dataset,
            revision,
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise PolarError(f"{path}: not a complete report of polar evaluate: {error!r}") from error


def eval_results(evaluations: list[Evaluation]) -> str | None:
    """The text of ``.eval_results/polar.yaml``; None without results on the Hub's data, or if the library lacks the format."""
    entries: list[Any] = []
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:  # an older release
        return None
    for each in evaluations:
        if each.dataset:
            notes = f"pairwise accuracy, {each.n} pairs, reference: {each.reference}"
            entries.append(
                EvalResultEntry(
                    dataset_id=each.dataset, task_id="default", value=each.accuracy, dataset_revision=each.revision, notes=notes
                )
            )
    if not entries:
        return None
    from polar_rm.common.yaml import dump_yaml

    return dump_yaml(eval_result_entries_to_yaml(entries))
