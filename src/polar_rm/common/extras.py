"""Packages that only some verbs need: what to type where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polar_rm.errors import PolarError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Around imports of optional packages. extra: the name in brackets that installs them. what: who needs them, for the message.

    Raises:
        PolarError: a package is missing; the message names it and the line to type.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).split(".")[0]
        if package == "polar_rm":  # a mistake of ours
            raise
        raise PolarError(f"{what} needs the package {package}: pip install 'polar-rm[{extra}]'") from error
