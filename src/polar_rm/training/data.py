"""The data of a run: encoded corpora that ``polar encode`` made, or comparisons that are encoded into the run's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from polar_rm.common.manifests import NAME
from polar_rm.common.progress import Progress, silent
from polar_rm.encoded.build import Encoding, check_bad_rows, encode_folder, rename_inputs, survey_input
from polar_rm.encoded.corpus import EncodedCorpus, check_sizes, is_encoded, open_corpus
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import PolarError
from polar_rm.records import OnBadRow, survey_files


def encode_corpus(
    paths: Sequence[Path],
    encoder: Encoder,
    folder: Path,
    *,
    on_bad_row: OnBadRow | None = None,
    empty_reference: bool = False,
    outputs: Sequence[Path] = (),
    progress: Progress = silent,
    report: Callable[[str], None] = lambda message: None,
) -> EncodedCorpus:
    """Encode files of comparisons into a folder in ``folder``, by all cores of this machine, or open the data that an earlier run
    with the same input and encoder wrote.

    paths: files, folders or patterns. on_bad_row: afterwards it has the count, notes and side file of the encoding, even of an
    earlier run's. empty_reference: train without references (the paper's "w/o reference" ablation). outputs: files and folders
    that the run writes; they are refused as data. progress: of the task ``encoding``, in MiB of input. report: called with a
    message if the data of an earlier run is damaged; what is damaged is then encoded again.

    Raises:
        PolarError: a row is not a comparison, and bad rows are not skipped; an earlier run skipped bad rows, which this run must
            not; the files hold no comparisons, or changed while they were read; a comparison has no reference.
    """
    survey = survey_input(survey_files(paths, outputs).files)
    content = [survey.inputs[str(file)] for file in survey.files]
    stripped = ["strip_prompt"] if on_bad_row and on_bad_row.strip_prompt else []
    digest = hashlib.sha256(json.dumps([content, encoder.hash, empty_reference, *stripped]).encode()).hexdigest()[:16]
    target = folder / digest
    if (old := folder / f"{digest}.index.json").exists() and not (target / NAME).exists():
        report(f"{old}: an earlier version of polar wrote it; the data is encoded again, and the old files are no longer needed")
    corpus = encode_folder(
        Encoding(
            survey,
            encoder,
            target,
            side_file=Path(on_bad_row.side_file) if on_bad_row and on_bad_row.side_file else folder / f"{digest}.rejected",
            reference="empty" if empty_reference else "given",
            strip_prompt=bool(stripped),
            skip_bad_rows=on_bad_row is not None and on_bad_row.mode == "skip",
            verify=True,
            progress=progress,
            report=report,
        )
    )
    if corpus.inputs != survey.inputs:
        corpus = rename_inputs(corpus, survey)
    check_bad_rows(corpus, on_bad_row, ", ".join(map(str, paths)))
    return corpus


def given_corpus(paths: Sequence[Path], encoder: Encoder, key: str, reference: str) -> EncodedCorpus | None:
    """The corpus of ``polar encode`` that ``paths`` name; None if they name comparisons, which have to be encoded.

    key: of the paths in the config, for messages. reference: ``given`` or ``empty``, which the corpus must have.

    Raises:
        PolarError: the corpus is not alone, not finished, or not of this encoder and reference.
        Damaged: a shard is missing or truncated.
    """
    encoded = [path for path in paths if is_encoded(path)]
    if not encoded:
        return None
    if len(paths) > 1:
        raise PolarError(f"{key}: the encoded corpus {encoded[0]} must be alone; encode all files into one corpus")
    corpus = open_corpus(encoded[0], encoder=encoder.hash, unfinished="run polar encode again")
    if corpus.reference != reference:
        raise PolarError(
            f"{encoded[0]}: it was encoded with reference={corpus.reference}, but data.reference is {reference}; encode it "
            f"again, or set data.reference={corpus.reference}"
        )
    check_sizes(corpus)
    return corpus
