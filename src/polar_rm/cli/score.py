"""The verb score, for files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polar_rm.cli.options import DATA, BadRows, Combined, Device, ModelDir, Precision, RowTokens, StripPrompt, verb
from polar_rm.cli.output import message, messages, report_bad
from polar_rm.common.progress import show_progress
from polar_rm.rewards.transforms import ItemTransform

_Source = Annotated[
    Path,
    typer.Option(
        "--input", help="Items {prompt, reference or references, output[, wrapper]}: JSON, CSV, Parquet, Arrow.", **DATA
    ),
]
_Target = Annotated[Path, typer.Option("--output", help="JSONL of {row, reward, n_tokens, truncated, notes, metadata}.")]
_Transform = Annotated[
    ItemTransform,
    typer.Option(
        help="Rows also get its `score`. `anchored`: 0 is the reference itself. `probability`: P(output over the reference). "
        "`percentile` and `probability` need `polar calibrate`."
    ),
]


_EachTurn = Annotated[
    bool,
    typer.Option(
        "--each-turn", help="Rows also get `turns`: the reward at the end of every message of the assistant in the output."
    ),
]


@verb("Use")
def score(
    model: ModelDir,
    source: _Source,
    target: _Target,
    transform: _Transform = "raw",
    combine: Combined = "mean",
    each_turn: _EachTurn = False,
    precision: Precision = "fp32",
    device: Device = "auto",
    row_tokens: RowTokens = 8192,
    on_bad_row: BadRows = "error",
    strip_prompt: StripPrompt = False,
) -> None:
    """Score a file of items: one raw reward per item, in the order of the input.

    Adjacent items with the same prompt and reference share their prefix. After an interruption the same command continues.

    Examples:

        polar score --model runs/rm/model --input items.jsonl --output scores.jsonl

        polar score --model runs/rm/model --input items.jsonl --output scores.jsonl --transform probability

        polar score --model runs/rm/model --input talks.jsonl --output turns.jsonl --each-turn
    """
    from polar_rm.common.files import sha256
    from polar_rm.common.locks import owned
    from polar_rm.model.devices import claim_device, dtype_name
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.records import OnBadRow, count_rows, find_file, side_file
    from polar_rm.rewards.scale import Scale
    from polar_rm.scoring.files import check_paths, check_rows, score_file

    source = source if source.exists() else find_file(source)
    check_paths(source, target)
    scale = Scale() if transform in ("raw", "tanh") and combine == "mean" else Scale.load(model)
    chosen: dict[str, Any] = {"transform": transform, "combine": combine, "each_turn": each_turn}
    check_rows(scale, **chosen)
    with owned(target, "score"):
        claimed = claim_device(device)
        dtype = dtype_name(precision, claimed)
        reward_model = RewardModel.from_pretrained(model, dtype=dtype, device=claimed)
        bad = OnBadRow(on_bad_row, side_file(target), strip_prompt=strip_prompt)
        identity = {
            "model": sha256(model),
            "encoder_hash": reward_model.encoder.hash,
            "input": sha256(source),
            "dtype": dtype,
            "strip_prompt": strip_prompt,
            **{name: value for name, value in chosen.items() if value not in ("raw", "mean", False)},
        }
        rows, total = 0, count_rows(source)
        options: dict[str, Any] = {**chosen, "scale": scale, "row_tokens": row_tokens, "on_bad_row": bad}
        with show_progress(messages, lines=True, unit="items") as progress:
            for rows in score_file(reward_model, source, target, identity=identity, **options):
                progress("scoring", rows, max(total, rows) if total else None)
    message(f"{rows:,} items scored into {target}")
    report_bad(bad)
