"""The ``polar`` command in this process, and what tests ask of its result: (exit code, stdout, stderr)."""

from __future__ import annotations

import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from polar_rm.cli import main as cli


def in_process(*arguments: object) -> tuple[int, str, str]:
    """Run the command here, where everything is imported already."""
    output, error = io.StringIO(), io.StringIO()
    own = patch.object(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own
    with redirect_stdout(output), redirect_stderr(error), own, patch.object(sys, "argv", ["polar", *map(str, arguments)]):
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, output.getvalue(), error.getvalue()


def refused(result: tuple[int, str, str], *expected: object) -> str:
    """The one line of a mistake of the user; it holds the expected words, and there is no traceback."""
    code, _, error = result
    lines = [line for line in error.splitlines() if line.startswith("polar: error: ")]
    assert code == 2, error
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in expected:
        assert str(word) in lines[0], lines[0]
    return lines[0]
