"""Packages that only some verbs need: what to type where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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
        raise PolarError(_line_to_type(extra, what, package)) from error


def require(extra: str, what: str, package: str) -> None:
    """:func:`needs` without an import: told before the work that ends where the package is imported.

    Raises:
        PolarError: as there.
    """
    try:
        spec = find_spec(package)
    except ValueError:  # imported as something that is no module
        spec = None
    if spec is None:
        raise PolarError(_line_to_type(extra, what, package))


def _line_to_type(extra: str, what: str, package: str) -> str:
    return f"{what} needs the package {package}: pip install 'polar-rm[{extra}]'"
