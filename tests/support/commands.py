"""What tests ask of a command's result: (exit code, stdout, stderr)."""

from __future__ import annotations


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
