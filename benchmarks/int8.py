"""Scoring in int8 and in float32 on a CPU, in turns: the ratio of time, and how far the rewards agree (``polar quantize``).

A processor with VNNI or AMX is needed; ``--force`` tries another. float32 is that of ``benchmarks/products.py``.

    python benchmarks/int8.py --model runs/quickstart/pretrain/model --json benchmarks/results/int8.json
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from common import LANGUAGE_MODEL, origin, paired, report

from polar_rm.common.files import write_json
from polar_rm.common.sources import data_path
from polar_rm.model.int8 import has_int8
from polar_rm.model.products import in_float32, quantize
from polar_rm.model.reward_model import RewardModel
from polar_rm.quantization.run import FLOAT32_LAYERS, measure
from polar_rm.records.reading import read_comparisons
from polar_rm.scoring.scorer import Scorer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a reward model; default: the whole of SmolLM2-135M with a random head")
    parser.add_argument("--data", default="package:polar_rm/quickstart/data/held_out.jsonl")
    parser.add_argument("--limit", type=int, default=48, help="number of comparisons")
    parser.add_argument("--float32", nargs="*", default=FLOAT32_LAYERS, help="ends of names of layers that stay in float32")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="also on a processor without instructions for int8")
    parser.add_argument("--json", type=Path, help="file for the row")
    arguments = parser.parse_args()
    if not (has_int8() or arguments.force):
        raise SystemExit("this processor has no instructions for int8; see --force")
    torch.set_num_threads(arguments.threads)
    if arguments.model:
        model = RewardModel.from_pretrained(arguments.model)
    else:
        model = RewardModel.from_causal_lm(LANGUAGE_MODEL)
        torch.nn.init.normal_(model.backbone.score.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    quantize(model.backbone.base_model, arguments.float32)
    scorer = Scorer(model)
    comparisons = list(read_comparisons([data_path(arguments.data)]))[: arguments.limit]

    def in_int8() -> None:
        list(scorer.score_comparisons(comparisons))

    def by_float32() -> None:
        with in_float32(model):
            in_int8()

    agreement = asdict(measure(scorer, comparisons, arguments.float32, [Path(arguments.data).name]))
    ratios = paired(in_int8, by_float32, arguments.rounds)
    row = {"layers": len(model.backbone.base_model.layers), "head": "trained" if arguments.model else "random"}
    row |= {key: value for key, value in agreement.items() if key not in ("encoder", "weights")} | ratios
    report([row], None)
    if arguments.json:
        write_json(arguments.json, [row | origin()])


if __name__ == "__main__":
    main()
