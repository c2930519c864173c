"""Optional packages, which only some verbs need, and the message that says how to install a missing one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from polar_rm.errors import PolarError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """A context for imports of optional packages.

    extra: the name in brackets that installs them. what: who needs them, for the message.

    Raises:
        PolarError: a package is missing; the message names it and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).split(".")[0]
        if package == "polar_rm":  # our own mistake
            raise
        raise PolarError(_install_message(extra, what, package)) from error


def require(extra: str, what: str, package: str) -> None:
    """Check for an optional package without importing it, so that the error comes before long work that imports it at the end.

    Raises:
        PolarError: as in :func:`needs`.
    """
    try:
        spec = find_spec(package)
    except ValueError:  # sys.modules holds something without a spec under this name
        spec = None
    if spec is None:
        raise PolarError(_install_message(extra, what, package))


def _install_message(extra: str, what: str, package: str) -> str:
    return f"{what} needs the package {package}: pip install {shlex.join(_missing_of(extra) or [package])}"


def _missing_of(extra: str) -> list[str]:
    """The requirements of an extra that are not installed, so that one command is enough and changes nothing else.

    They are named one by one, because a name of ours in a registry may be somebody else's."""
    from packaging.requirements import Requirement

    try:
        lines = [Requirement(line) for line in requires("polar-rm") or []]
    except PackageNotFoundError:  # run from a folder, without installation
        return []
    found = [line for line in lines if line.marker and line.marker.evaluate({"extra": extra}) and not _is_installed(line.name)]
    for line in found:
        line.marker = None
    return [str(line) for line in found]


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
