"""Locating and loading language models: in a folder, or in an installed Python package that contains weights.

transformers and torch are imported on use, so that locating a model does not take the time of their import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from polar_rm.common.files import atomic_directory, read_json, sha256, write_json
from polar_rm.common.paths import check_model
from polar_rm.common.sources import model_folder
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError
from polar_rm.model.bars import without_bars

if TYPE_CHECKING:
    import torch


def find_gguf(folder: Path, named: str | None = None) -> str | None:
    """The GGUF file with a folder's weights: the named one, or the only one in a folder without config.json; else None.

    Raises:
        PolarError: the named file is missing, or there are several files.
    """
    if named is not None:
        if not (folder / named).is_file():
            raise PolarError(f"{folder / named}: no such file")
        return named
    if (folder / "config.json").exists():
        return None
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if len(files) > 1:
        raise PolarError(f"{folder}: several GGUF files, name one as gguf_file: {', '.join(files)}")
    return files[0] if files else None


def load_auto_tokenizer(source: str | Path, gguf_file: str | None = None) -> Any:
    """Load the transformers tokenizer of a language model, with its chat template. source: as in :func:`model_folder`.

    Raises:
        PolarError: there is no tokenizer, one of its files is damaged or could take any amount of memory, or it is a slow one,
            which gives no offsets.
    """
    from transformers import AutoTokenizer

    folder = model_folder(source)
    gguf_file = find_gguf(folder, gguf_file)
    _check_files(folder, gguf_file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
        tokenizer("a")  # some values are used only now
    except Exception as error:  # on a bad value transformers raises any type of error
        raise PolarError(f"{folder}: no tokenizer could be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise PolarError(f"{folder}: its tokenizer has no fast version (tokenizer.json)")
    template = getattr(tokenizer, "chat_template", None)
    templates = template.values() if isinstance(template, dict) else [template]
    if not all(isinstance(each, str) for each in templates) and template is not None:
        raise PolarError(f"{folder}: its chat template is {template!r:.60}: expected a text")
    return tokenizer


def _check_files(folder: Path, gguf_file: str | None) -> None:
    """Check what transformers reads for a tokenizer: it builds what these files say, the model's config included."""
    from polar_rm.encoding.tokenizers import check_tokenizer_file
    from polar_rm.model.folders import check_gguf_sizes, check_sizes
    from polar_rm.model.native import read_specials

    if gguf_file is not None:
        check_gguf_sizes(folder / gguf_file)
    elif (folder / "config.json").is_file():
        check_sizes(folder / "config.json")
    if (folder / "tokenizer.json").is_file():
        check_tokenizer_file(folder / "tokenizer.json")
    read_specials(folder)


def check_language_model(source: str | Path, gguf_file: str | None = None) -> None:
    """Check the files of a language model before a library reads them: config, tokenizer, and what the weights hold.

    Raises:
        UnsupportedModel: a size is beyond all models, or the weights have fewer layers than the config says.
        PolarError: a file is missing, damaged, or not what its name says.
    """
    from polar_rm.model.folders import check_layers

    folder = model_folder(source)
    gguf_file = find_gguf(folder, gguf_file)
    if gguf_file is None:
        check_model(source)
    _check_files(folder, gguf_file)
    if gguf_file is None:
        check_layers(folder)


def _check_parameters(folder: Path, gguf_file: str | None) -> None:
    """Check that a language model's config asks for no more than its weights hold. Quantised weights are packed in many ways, and
    are not counted."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from polar_rm.model.folders import check_parameters
    from polar_rm.model.gguf_files import gguf_elements
    from polar_rm.model.weights import tensor_shapes

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **({"gguf_file": gguf_file} if gguf_file else {}))
    if getattr(config, "quantization_config", None) is not None and gguf_file is None:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    held = {} if gguf_file else tensor_shapes(folder)
    check_parameters(folder, model, held, gguf_elements(folder / gguf_file) if gguf_file else sum(map(prod, held.values())))


_parsing = RLock()


@contextmanager
def parse_gguf_once() -> Iterator[None]:
    """Within the block or function a GGUF is parsed once.

    transformers parses it for the config, for the tokenizer and for the weights, five seconds each. Only one thread at a time
    runs the block, because it replaces the reader of the ``gguf`` module.
    """
    try:
        import gguf
    except ImportError:  # only a GGUF needs the package, and transformers then reports that it is missing
        yield
        return
    with _parsing, patch.object(gguf, "GGUFReader", lru_cache(1)(gguf.GGUFReader)):
        yield


@parse_gguf_once()
@without_bars()
def load_causal_lm(source: str | Path, gguf_file: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the transformers tokenizer and language model. source: as in :func:`model_folder`. gguf_file: one of its GGUF files.

    Raises:
        PolarError: the tokenizer or the model can't be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = model_folder(source)
    check_language_model(folder, gguf_file)
    tokenizer = load_auto_tokenizer(folder, gguf_file)
    file = find_gguf(folder, gguf_file)
    try:
        _check_parameters(folder, file)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **gguf_options(file))
    except (PolarError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # on a bad value transformers raises any type of error
        raise PolarError(f"{folder}: {first_line(error)}") from error
    return tokenizer, model


@without_bars()
def unpack_gguf(source: str | Path, target: Path) -> str:
    """The folder to load a language model from that is loaded several times: ``source``, or ``target`` with an unpacked GGUF.

    A GGUF's weights are written to ``target`` as an ordinary folder, unless it holds those of this very file already. Reading a
    GGUF takes about 15 seconds of one core each time.
    """
    folder = model_folder(source)
    name = find_gguf(folder)
    if name is None:
        return str(source)
    origin = {"gguf": sha256(folder / name)}
    marker = target / "unpacked.json"
    if not marker.is_file() or read_json(marker) != origin:
        import torch

        tokenizer, model = load_causal_lm(source, None, torch.float32)
        with atomic_directory(target) as partial:
            tokenizer.save_pretrained(partial)
            model.save_pretrained(partial)
            write_json(partial / marker.name, origin)
    return str(target)


def gguf_options(file: str | None) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that unpack a GGUF to ordinary tensors: packed tensors are slow and can't be trained."""
    if file is None:
        return {}
    import transformers

    # Older releases always unpack and have no such setting.
    config = getattr(transformers, "GgufConfig", None)
    return {"gguf_file": file} | ({"quantization_config": config(dequantize=True)} if config else {})
