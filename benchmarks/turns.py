"""A reward at the end of every turn: one pass over the conversation, against every turn scored alone.

The two take turns on the same conversation. Also the largest difference of their rewards, relative to the largest reward.

    python benchmarks/turns.py --tokens 16384 --turns 12 --output benchmarks/results/turns.json
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import comparisons, origin, paired, peak_rss_mib
from models import build_model, device_name, model_options

from polar_rm.common.files import write_json
from polar_rm.encoding.encoder import Encoder
from polar_rm.model.devices import claim_device
from polar_rm.records import ScoreItem
from polar_rm.rewards.turns import turns_of
from polar_rm.scoring.scorer import Scorer


def conversation(tokens: int, turns: int) -> ScoreItem:
    """A prompt, a reference, and an output of about this many tokens with this many turns of the assistant."""
    texts = [row.prompt for row in comparisons(2 * turns + 1, 2, tokens // (2 * turns))]
    messages = [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(texts[1:])][:-1]
    return ScoreItem("Plan the week.", str(texts[0]), messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_options(parser)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = torch.device(claim_device(arguments.device))
    model = build_model(arguments).to(device)
    torch.nn.init.normal_(model.backbone.score.weight)
    limits = {"max_length": 5 * arguments.tokens, "max_response_length": 2 * arguments.tokens}
    model.encoder = Encoder(model.encoder.source, replace(model.encoder.settings, **limits))
    item = conversation(arguments.tokens, arguments.turns)
    alone = [ScoreItem(item.prompt, item.reference, output) for output in turns_of(item.output)]

    def separate() -> list[Any]:
        return [next(Scorer(model, window=1).score([each])) for each in alone]

    def together() -> list[Any]:
        return next(Scorer(model, row_tokens=limits["max_length"]).score_turns([item]))  # longer rows would be split

    one, other = together(), separate()
    difference = max(abs(a.reward - b.reward) for a, b in zip(one, other, strict=True)) / max(abs(b.reward) for b in other)
    row: dict[str, Any] = {
        "tokens": one[-1].n_tokens,
        "turns": len(one),
        "difference": difference,
        **paired(together, separate, arguments.rounds),
        "peak_mib": peak_rss_mib(),
        "device": device_name(device),
    }
    print(row)
    if arguments.output:
        write_json(arguments.output, {**origin(), "rows": [row]})


if __name__ == "__main__":
    main()
