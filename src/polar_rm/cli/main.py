"""The ``polar`` command: thin verbs over the Python API. A verb imports its dependencies only when it is called."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from polar_rm.cli import (  # noqa: F401  (these modules register their verbs)
    audit,
    bestofn,
    calibrate,
    data,
    encode,
    evaluation,
    exchange,
    quantize,
    rft,
    scaling,
    score,
    select,
    serve,
    train,
)
from polar_rm.cli.options import app
from polar_rm.cli.output import print_text
from polar_rm.common.memory import ran_out
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError

ENVIRONMENT = {
    # Without it tokenizers warn on every fork. Batches are tokenised on all threads before any process is forked.
    "TOKENIZERS_PARALLELISM": "true",
    # While they load weights, libraries draw their own progress bars over ours.
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # transformers' load report calls our new head "MISSING"; we check for missing tensors ourselves.
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Defaults of variables that libraries read when they are imported, which happens later."""


def _print_versions(requested: bool) -> None:
    if requested:
        from importlib import metadata
        from platform import python_version

        libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
        print_text(f"polar-rm {metadata.version('polar-rm')} (Python {python_version()}, {libraries})")
        raise typer.Exit


@app.callback()
def polar(
    version: Annotated[
        bool, typer.Option("--version", help="Show versions and exit.", callback=_print_versions, is_eager=True)
    ] = False,
) -> None:
    """Reward models pre-trained as policy discriminators (POLAR, arXiv 2507.05197)."""


def main() -> None:
    """Entry point. A user's mistake prints one clear line and exits with code 2, never with a traceback."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.formatwarning = _one_line
    try:
        app()
    except PolarError as error:
        _fail(*error.problems)
    except OSError as error:  # a full disk, a folder that is not writable
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        _fail(f"out of memory: {first_line(error)}; fewer row_tokens or a smaller model take less")


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """A warning in one line, without its position in the code, which is of no use to a user."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"warning: {kind}{' '.join(str(message).split())}\n"


def _fail(*messages: str) -> NoReturn:
    for message in messages:
        print(f"polar: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
