import sys
import warnings

import pytest

from polar_rm.cli import main as cli


@pytest.fixture
def polar(monkeypatch, capsys, tmp_path):
    """The command in this process and a folder of its own: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["polar", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
