"""The identity of a saved model, for files in its folder that are valid for one model only, such as its calibration card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from polar_rm.common.files import read_json
from polar_rm.errors import PolarError

# The hash covers this many evenly spread pieces of a weights file. Training changes all of them, and hashing gigabytes would take
# longer than loading them.
_PIECES = 64
_PIECE_BYTES = 1 << 16


def model_identity(model: Path) -> dict[str, str]:
    """The encoder's hash and a hash of the weights, which covers the name, the size and 4 MiB of each file.

    Both are equal on every machine.
    """
    config = read_json(model / "config.json") if (model / "config.json").is_file() else {}
    section = config.get("polar")
    encoder = section.get("encoder", {}) if isinstance(section, dict) else {}
    weights = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        size = path.stat().st_size
        weights.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(piece * max(0, size - _PIECE_BYTES) // (_PIECES - 1))
                weights.update(file.read(_PIECE_BYTES))
    return {"encoder": str(encoder.get("hash", "")), "weights": weights.hexdigest()[:16]}


def check_identity(path: Path, saved: Mapping[str, str], model: Path, what: str, verb: str) -> None:
    """Refuse a file that was made with another model.

    saved: the values of :func:`model_identity` when the file was made. what: what the file holds, for the message.
    verb: the one that makes another.

    Raises:
        PolarError: the encoder or the weights are different.
    """
    for part, digest in model_identity(model).items():
        if saved[part] != digest:
            raise PolarError(
                f"{path}: {what} belongs to another model (different {part}); make one with this model: "
                f"polar {verb} {model} PAIRS"
            )
