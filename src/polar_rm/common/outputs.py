"""What a plan (``--dry-run``) says of the output folder: whether the run would start, continue, or find its work done."""

from __future__ import annotations

from pathlib import Path

from polar_rm.common.locks import owner_of

FOUND = {
    "new": "the run starts",
    "unfinished": "the run continues an unfinished one",
    "finished": "the run is finished already; the command only checks it",
}
"""What :func:`polar_rm.common.manifests.found_output` finds, in words."""


def output_line(output: Path, state: str) -> str:
    """A plan's line about the output folder. state: what the run does there, such as "the run starts".

    Another process that works there now is no error of a plan: it may have ended when the run starts.
    """
    owner = owner_of(output)
    return f"{output}: {state}{f', but not now: the folder is in use by {owner}' if owner else ''}"
