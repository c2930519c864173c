"""What a GGUF says of itself, read without unpacking its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polar_rm.common.extras import needs
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError


def read_gguf(path: Path) -> Any:
    """Its metadata and tensors, none of them unpacked: a ``gguf.GGUFReader``.

    Raises:
        PolarError: it is no GGUF, a damaged one, or the package that reads them is missing.
    """
    with needs("gguf", f"{path}: a GGUF"):
        import gguf

    try:
        return gguf.GGUFReader(str(path))
    except Exception as error:  # it takes any bytes for what they should be
        raise PolarError(f"{path}: not a complete GGUF file: {first_line(error)}") from error


def gguf_elements(path: Path) -> int:
    """How many numbers its tensors hold together; errors as of :func:`read_gguf`."""
    return sum(int(tensor.n_elements) for tensor in read_gguf(path).tensors)


def gguf_metadata(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Values of the architecture's own keys, as far as it has them; errors as of :func:`read_gguf`. names: without the
    architecture's in front."""
    fields = read_gguf(path).fields
    try:
        architecture = str(fields["general.architecture"].contents())
        keys = {name: f"{architecture}.{name}" for name in names}
        return {name: fields[key].contents() for name, key in keys.items() if key in fields}
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise PolarError(f"{path}: not a complete GGUF file: {first_line(error)}") from error
