import logging
import os

import pytest
import torch
from hypothesis import settings
from support import hub as stand_in
from support import tiny

from polar_rm.reporting import plots

# No example is timed: how long one takes says something of the machine only.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# With one process of tests per core, torch needs no further threads: they would only wait for one another.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start


@pytest.fixture(autouse=True)
def loggers_as_before():
    """Restore the loggers: a server in this process logs to the stderr of its test, which is closed in later tests."""
    loggers = [logging.getLogger(name) for name in ("polar_rm", "uvicorn", "asyncio")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def plots_are_blank(request, monkeypatch):
    """Draw nothing, which takes a second a plot, but in tests that look at plots."""
    if not request.node.get_closest_marker("plots"):
        blank = {"svg": b"<svg></svg>", "png": b"\x89PNG"}
        monkeypatch.setattr(plots, "_render", lambda figure, suffix: blank[suffix])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    settings = tiny.EncoderSettings(max_length=200, max_response_length=60)
    model = tiny.reward_model(folder / "lm", settings=settings)
    model.save(folder / "model")
    return folder / "model", model


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in for the Hugging Face Hub, with empty caches and without a token; the test runs in ``tmp_path``."""
    with stand_in.served() as served:
        stand_in.use(served, tmp_path, monkeypatch)
        yield served
