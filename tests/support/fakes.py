"""A server with a fake model whose scores identify their sequences."""

from __future__ import annotations

import threading
import time

import httpx

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.model.native import add_role_tokens
from polar_rm.records import ScoreItem
from polar_rm.rewards.scale import Scale
from polar_rm.serving.app import create_app
from polar_rm.serving.batching import Batcher
from polar_rm.serving.launch import in_thread as running  # noqa: F401
from polar_rm.serving.service import Service
from support import tiny

HTTP = httpx.Client(timeout=60)  # shared, because each client loads the system's certificates

WORDS = "the quick brown fox jumps over a lazy dog near the river bank".split()


def encoder(**settings):
    return Encoder(add_role_tokens(tiny.tokenizer(bos=True)), EncoderSettings(**settings))


def fake_score(ids) -> float:
    """A number that differs for all sequences of a test."""
    return sum((position + 1) * token for position, token in enumerate(ids)) % 1_000_003 / 1000 - 400


class FakeModel:
    """Scores trees by :func:`fake_score`. delay: seconds per call. gate: an event that calls wait for. fail(ids): may raise."""

    def __init__(self, delay=0.0, fail=None, gate=None):
        self.delay, self.fail, self.gate = delay, fail, gate
        self.calls = []
        self.threads = set()

    def __call__(self, trees):
        self.threads.add(threading.current_thread().name)
        self.calls.append(trees)
        time.sleep(self.delay)
        if self.gate:
            assert self.gate.wait(120)
        sequences = [[tree.sequence(i) for i in range(len(tree.branches))] for tree in trees]
        if self.fail:
            for ids in (ids for group in sequences for ids in group):
                self.fail(ids)
        return [[fake_score(ids) for ids in group] for group in sequences]


def ids_of(item: ScoreItem, encode: Encoder) -> list[int]:
    [(_, tree)] = encode.encode_outputs(item.prompt, item.reference, [item.output], item.wrapper)
    return tree.sequence(0)


def make(model=None, encode=None, *, batching=None, scale=None, max_positions=None, **options):
    """An application. scale: of its model; a model with a method ``measure`` also gives features."""
    model = model or FakeModel()
    batcher = Batcher(model, getattr(model, "measure", None), **(batching or {}))
    service = Service("rm", encode or encoder(), batcher, scale or Scale(), max_positions)
    return create_app(service, **options)
