"""All problems of a command's inputs at once, so that a user need not mend them one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polar_rm.errors import PolarError, SeveralProblems


class Problems:
    """Collects the errors of checks that do not depend on one another."""

    def __init__(self) -> None:
        self._errors: dict[str, PolarError] = {}  # one missing file may be found by two checks

    def __bool__(self) -> bool:
        return bool(self._errors)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep the error of a check, and go on with the next one."""
        try:
            yield
        except PolarError as error:
            self._errors.setdefault(str(error), error)

    def check(self) -> None:
        """Raise what was found.

        Raises:
            PolarError: the only problem, unchanged. SeveralProblems: all of them.
        """
        errors = list(self._errors.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise SeveralProblems(*(line for error in errors for line in error.problems))
