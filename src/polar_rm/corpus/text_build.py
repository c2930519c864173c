"""The stages of a corpus of continuations, from parts to shards. See :mod:`polar_rm.corpus.continuations` for what is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from polar_rm.common.progress import Progress
from polar_rm.corpus.contamination import index_evaluations
from polar_rm.corpus.continuations import Divider
from polar_rm.corpus.counts import Counts, Example, TextCounter, merge_examples, sum_counts
from polar_rm.corpus.job import Job
from polar_rm.corpus.results import BucketResult, DroppedText, PartResult, TextsResult
from polar_rm.corpus.stages import lines_before, result_of, run_stage
from polar_rm.corpus.text_buckets import divide_bucket, draw_all, index_held_out, keep_bucket, pair_bucket
from polar_rm.corpus.texts import partition_texts
from polar_rm.errors import PolarError

REASONS = {
    "empty": "are empty",
    "copies": "are copies of others",
    "too_short": "are too short for min_beginning, min_continuation and the range of beginnings",
    "without_border": "have no word border where they may be divided",
    "contaminated": "are in the evaluation files",
    "near_held_out": "share words with held-out texts",
    "alone": "find no other continuation that the settings allow",
}
"""Why a text has no comparison -> in words, after a number."""


@dataclass(frozen=True, slots=True)
class PairedTexts:
    """The results of all stages. job: with what the stages found. dropped: texts near evaluation prompts or held-out texts."""

    job: Job
    buckets: list[BucketResult]
    counts: Counts
    examples: dict[str, list[Example]]
    dropped: list[DroppedText]


def pair_texts(job: Job, progress: Progress) -> PairedTexts:
    """Run all stages, or those that an interrupted build has not finished.

    Raises:
        PolarError: the input or a setting is bad, or there is nothing to compare.
        MachineFailure: as in :func:`polar_rm.corpus.build.build`.
    """
    config = job.config
    Divider(config.of_continuations, config.seed)  # both raise for bad settings, before anything is read
    TextCounter.load(config.report.tokenizer)
    parts = run_stage(job, "parts", partition_texts, PartResult, len(job.parts), progress)
    evaluations = config.decontamination.files
    job = replace(
        job,
        lines_before=tuple(lines_before(job.parts, parts)),
        evaluations=index_evaluations(evaluations, config.decontamination.n) if evaluations else None,
    )
    results = run_stage(job, "texts", divide_bucket, TextsResult, job.n_buckets, progress)
    job = replace(job, evaluations=None, held_out_texts=index_held_out(job))  # an index may be large, and is sent to every worker
    if job.held_out_texts:
        results += run_stage(job, "kept", keep_bucket, TextsResult, job.n_buckets, progress)
        job = replace(job, held_out_texts=None)
    if any(result_of(job, "buckets", number, BucketResult) is None for number in range(job.n_buckets)):
        progress("negatives", 0, 1)
        draw_all(job)
        progress("negatives", 1, 1)
    buckets = run_stage(job, "buckets", pair_bucket, BucketResult, job.n_buckets, progress)
    counts = _counts(parts, results, buckets)
    if not any(bucket.shards for bucket in buckets):
        raise PolarError(f"there is nothing to compare: {_reason(counts['texts'])}")
    dropped = [row for result in results for row in result.dropped]
    return PairedTexts(job, buckets, counts, merge_examples(part.examples for part in parts), dropped)


def _counts(parts: Sequence[PartResult], results: Sequence[TextsResult], buckets: Sequence[BucketResult]) -> Counts:
    each: Iterable[PartResult | TextsResult | BucketResult] = (*parts, *results, *buckets)
    counts = sum_counts(result.counts for result in each)
    texts = counts.setdefault("texts", {})
    texts["read"] = sum(part.rows + part.refused + part.unselected for part in parts)
    texts["unselected"] = sum(part.unselected for part in parts)
    texts["refused"] = sum(part.refused for part in parts)
    return counts


def _reason(texts: dict[str, int]) -> str:
    """Why no text has a comparison, from the counts."""
    if not texts.get("rows"):
        return "no row of the inputs is a text"
    reasons = [f"{texts[name]:,} {words}" for name, words in REASONS.items() if texts.get(name)]
    return f"of {texts['rows']:,} text{'' if texts['rows'] == 1 else 's'} {', '.join(reasons)}"
