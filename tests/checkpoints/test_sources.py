"""Where language models come from: a GGUF is parsed once while it is loaded."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from polar_rm.checkpoints.sources import gguf_parsed_once

gguf = pytest.importorskip("gguf")


def test_one_parse_within_and_the_reader_is_given_back(monkeypatch):
    parsed = []
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: parsed.append(path) or object())
    with gguf_parsed_once():
        assert gguf.GGUFReader("a.gguf") is gguf.GGUFReader("a.gguf")
    gguf.GGUFReader("a.gguf")
    assert parsed == ["a.gguf", "a.gguf"]


def test_two_threads_leave_the_reader_as_it_was():
    original, inside, go = gguf.GGUFReader, Event(), Event()

    def load() -> None:
        with gguf_parsed_once():
            inside.set()
            go.wait(5)

    other = Thread(target=load)
    with gguf_parsed_once():
        other.start()
        inside.wait(0.3)  # one that does not wait for us would be in by now
    go.set()
    other.join()
    assert inside.is_set()
    assert gguf.GGUFReader is original
