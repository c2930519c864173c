"""Locating and loading language models, errors where there are none, and GGUF files, which are parsed once."""

from __future__ import annotations

from threading import Event, Thread

import pytest
import torch
from support import tiny

from polar_rm.common.sources import model_folder
from polar_rm.errors import PolarError
from polar_rm.model.language_models import load_causal_lm, parse_gguf_once

gguf = pytest.importorskip("gguf")


def test_a_gguf_is_parsed_once_and_the_reader_is_restored(monkeypatch):
    parsed = []
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: parsed.append(path) or object())
    with parse_gguf_once():
        assert gguf.GGUFReader("a.gguf") is gguf.GGUFReader("a.gguf")
    gguf.GGUFReader("a.gguf")
    assert parsed == ["a.gguf", "a.gguf"]


def test_two_threads_restore_the_original_reader():
    original, inside, go = gguf.GGUFReader, Event(), Event()

    def load() -> None:
        with parse_gguf_once():
            inside.set()
            go.wait(5)

    other = Thread(target=load)
    with parse_gguf_once():
        other.start()
        inside.wait(0.3)  # a thread that does not wait for us would be inside by now
    go.set()
    other.join()
    assert inside.is_set()
    assert gguf.GGUFReader is original


@pytest.mark.parametrize("name", ["no_such_weights", "nope.sub", "json.sub", "a.b c", "", ".relative"])
def test_a_missing_package_is_reported_in_one_line(name):
    with pytest.raises(PolarError, match="is not installed"):
        model_folder(f"package:{name}")


def test_truncated_weights_are_reported_in_one_line(tmp_path):
    folder = tiny.causal_lm(tmp_path / "lm")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PolarError, match=f"^{weights}: not a complete safetensors file"):
        load_causal_lm(folder, None, torch.float32)
