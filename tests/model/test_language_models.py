"""Where language models come from, and what is said where there are none; a GGUF is parsed once while it is loaded."""

from __future__ import annotations

from threading import Event, Thread

import pytest
import torch
from support import tiny

from polar_rm.errors import PolarError
from polar_rm.model.language_models import gguf_parsed_once, load_causal_lm, model_folder

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


@pytest.mark.parametrize("name", ["no_such_weights", "nope.sub", "json.sub", "a.b c", "", ".relative"])
def test_a_package_that_is_not_there_is_one_line(name):
    with pytest.raises(PolarError, match="is not installed"):
        model_folder(f"package:{name}")


def test_weights_that_are_cut_off_are_one_line(tmp_path):
    folder = tiny.causal_lm(tmp_path / "lm")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PolarError, match=f"^{folder}: "):
        load_causal_lm(folder, None, torch.float32)
