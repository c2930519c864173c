import pytest
from support import stub

from polar_rm.sampling.backends import openai


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(openai, "BACKOFF_S", 0.01)


@pytest.fixture
def server():
    with stub.served() as running:
        yield running
