"""Memory of ``polar convert``: a synthetic official checkpoint of several shards, converted there and back in new processes.

The default has POLAR-7B's widths, so its largest tensor (the embedding, 0.76 GB in half precision) and its layers have the real
sizes; it only has fewer layers. Memory depends on shards and single tensors, not on the number of layers: with ``--layers 4 8``
the peak should be the same for both sizes. The tokenizer comes from an official folder (``--official``), which we may not
distribute.

    python benchmarks/convert.py --official DIR --layers 4 8
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import peak_rss_mib, report

from polar_rm.common.files import write_json
from polar_rm.conversion.convert import convert
from polar_rm.conversion.internlm2 import Shape
from polar_rm.model import weights
from polar_rm.model.weights import LazyTensor

WIDTHS = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}  # POLAR-7B


def synthetic(folder: Path, official: Path, layers: int) -> None:
    """An official folder with random half-precision weights, in shards of about 2 GB."""
    folder.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(official / name, folder / name)
    config = json.loads((official / "config.json").read_text()) | WIDTHS | {"num_hidden_layers": layers}
    write_json(folder / "config.json", config)

    def random(shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(shape, torch.float16, lambda: torch.empty(shape, dtype=torch.float16).normal_(std=0.02))

    weights.SHARD_BYTES = 2 << 30
    weights.write_shards(folder, {name: random(shape) for name, shape in Shape.of(config).internlm2().items()})


def measured(source: Path, target: Path, to: str) -> dict[str, float]:
    """Seconds and peak MiB of one conversion, in a separate process."""
    command = [sys.executable, __file__, "--child", str(source), str(target), to]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def child(source: str, target: str, to: str) -> None:
    before, start = peak_rss_mib(), time.perf_counter()
    convert(source, target, to=to)  # type: ignore[arg-type]
    print(json.dumps({"seconds": time.perf_counter() - start, "before_mib": before, "peak_mib": peak_rss_mib()}))


def equal(one: Path, other: Path) -> bool:
    """Whether two folders contain the same tensors, bit by bit."""
    first, second = (weights.read_weights(folder) for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name].load(), second[name].load()) for name in first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="folder with an official tokenizer.model and its two configs")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    if arguments.official is None:
        parser.error("--official is required")
    rows: list[dict[str, Any]] = []
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary:
            folder = Path(temporary)
            synthetic(folder / "official", arguments.official, layers)
            shards = list((folder / "official").glob("*.safetensors"))
            size = sum(path.stat().st_size for path in shards) / 2**20
            there = measured(folder / "official", folder / "native", "native")
            back = measured(folder / "native", folder / "back", "internlm2")
            exact = equal(folder / "official", folder / "back")
            for direction, result in (("to native", there), ("back", back)):
                row = {"layers": layers, "file_mib": size, "shards": len(shards), "way": direction}
                rows.append({**row, **result, "bit_exact": exact})
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
