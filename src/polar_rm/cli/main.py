"""The ``polar`` command: thin verbs over the Python API."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from polar_rm.cli import data, serve, train, use  # noqa: F401  (they register their verbs)
from polar_rm.cli.options import app
from polar_rm.errors import PolarError

# Tokenizers warn on every fork otherwise; batches are tokenised on all threads before any process is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Libraries draw bars of their own while they load weights, across ours. Read when they are imported.
os.environ.setdefault("TQDM_DISABLE", "1")


def main() -> None:
    """Entry point: a user's mistake is one clear line and exit code 2, never a traceback."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # its load report calls our new head "MISSING"; we check for missing tensors ourselves
    logging.disable_progress_bar()
    try:
        app()
    except PolarError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder that is not writable
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(message: str) -> NoReturn:
    print(f"polar: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
