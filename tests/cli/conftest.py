import pytest
from support.commands import in_process


@pytest.fixture
def polar(monkeypatch, tmp_path):
    """The command in this process and a folder of its own: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return in_process
