"""Addresses such as ``s3://bucket/rows``, which data may have, and results may not."""

from __future__ import annotations

import re
from pathlib import Path

from polar_rm.errors import PolarError

# Paths lose the second slash of an address. A single letter is a drive of Windows.
ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?P<rest>[^/].*)")

LOCAL_ONLY = "expected a local path: mount the bucket, or copy the results there afterwards"


def check_local(path: str | Path) -> None:
    """Check that results can be written to a path: a folder called ``s3:`` would be lost with its machine.

    Raises:
        PolarError: it is an address.
    """
    if found := ADDRESS.fullmatch(str(path)):
        raise PolarError(f"{found['scheme']}://{found['rest']}: {LOCAL_ONLY}")
