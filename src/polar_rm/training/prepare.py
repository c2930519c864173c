"""Preparation of a run, cheapest steps first: encoder, data, plan, and only then weights."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from polar_rm.common.files import sha256, temporary_path
from polar_rm.common.manifests import check_manifest
from polar_rm.common.progress import plain_console, say, show_progress
from polar_rm.common.sources import model_folder
from polar_rm.encoded.corpus import EncodedCorpus, open_corpus
from polar_rm.encoded.order import batches
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import ConfigError, Damaged, PolarError, UnsupportedModel
from polar_rm.model.blueprint import (
    Blueprint,
    checkpoint_blueprint,
    language_model_blueprint,
    preset_blueprint,
    warn_beyond_positions,
)
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import OnBadRow, side_file, survey_files
from polar_rm.training.cluster import Work, mean_tree, plan_cluster
from polar_rm.training.config import EncoderConfig, TrainConfig
from polar_rm.training.data import encode_corpus, given_corpus
from polar_rm.training.encode_config import EncodeConfig
from polar_rm.training.parallel import World
from polar_rm.training.plan import Plan, make_plan

T = TypeVar("T")

# Seconds within which a file that rank 0 has written must be visible to all ranks: network file systems cache attributes for up
# to a minute.
_VISIBLE_S = 120.0


@dataclass(frozen=True)
class Prepared:
    """A run before its weights are loaded.

    inputs: path of every data file -> SHA-256, computed before the file was read. base: SHA-256 of the folder of the base model
    of adapters; None without adapters.
    """

    blueprint: Blueprint
    train_set: EncodedCorpus
    eval_set: EncodedCorpus | None
    plan: Plan
    inputs: dict[str, str]
    base: str | None

    @property
    def encoder(self) -> Encoder:
        """The encoder of data and model."""
        return self.blueprint.encoder


def prepare(config: TrainConfig, world: World, *, console: Console | None = None) -> Prepared:
    """Read the model's settings, encode the data and plan the run, without loading weights. Every rank calls this.

    Only rank 0 hashes, encodes and writes, without a time limit; the others then open its files.

    Raises:
        PolarError: the settings or a row are bad, or the model can't be used; on several ranks also if they share no output
            folder or have different models.
    """
    console = console or plain_console(stderr=True)
    blueprint = read_blueprint(config)
    _check_dropout(blueprint)
    if world.size > 1:
        _check_shared(config.output, world)
        _check_same_model(blueprint, world)
    names = {"train": config.data.train, "eval": config.data.eval}
    encoded: dict[str, EncodedCorpus] = {}

    def encode_all() -> dict[str, list[str]]:
        encoded.update({name: _encode(config, blueprint.encoder, name, paths, console) for name, paths in names.items() if paths})
        return {name: [str(corpus.folder), corpus.digest] for name, corpus in encoded.items()}

    found = world.from_main(encode_all)
    corpora = encoded or {name: _open(Path(folder), digest, world) for name, (folder, digest) in found.items()}
    base = config.model.resume_from or config.model.init
    # A checkpoint of adapters depends on base weights that it does not contain.
    base_hash = world.from_main(lambda: sha256(model_folder(base)) if config.lora and base else None)
    plan = make_plan(config, blueprint.on_meta, corpora["train"], world.device.type, blueprint.untrained_roles())
    inputs = {path: digest for corpus in corpora.values() for path, digest in corpus.inputs.items()}
    return Prepared(blueprint, corpora["train"], corpora.get("eval"), plan, inputs, base_hash)


def plan_for(config: TrainConfig, prepared: Prepared, gpus: int, device: str) -> Plan:
    """The plan with that of ``gpus`` GPUs of a kind, see :func:`plan_cluster`."""
    plan, data = prepared.plan, prepared.train_set
    lengths = data.lengths[next(batches(plan.comparisons, plan.batch_size, seed=config.seed))]
    tree = mean_tree(plan.comparisons, data.stats.candidates, plan.tokens, plan.separate_tokens)
    work = Work(plan.parameters, plan.trained, tree, lengths.tolist(), plan.steps, plan.tokens)
    backbone = prepared.blueprint.on_meta.config
    return replace(plan, cluster=plan_cluster(config, backbone, work, gpus=gpus, device=device))


def read_blueprint(config: TrainConfig | EncodeConfig) -> Blueprint:
    """The architecture and the encoder that a run starts with."""
    source = config.model
    settings = source.encoder.settings() if source.encoder else None
    if source.resume_from:
        blueprint = checkpoint_blueprint(source.resume_from)
        if not source.encoder:
            return blueprint
        encoder = with_lengths(blueprint.encoder, source.encoder, source.resume_from)
        warn_beyond_positions(source.resume_from, encoder.settings, blueprint.config)
        return replace(blueprint, encoder=encoder)
    if source.init:
        return language_model_blueprint(source.init, settings=settings, n_layers=source.n_layers, gguf_file=source.gguf_file)
    assert source.preset is not None  # checked by the config
    assert source.tokenizer is not None
    return preset_blueprint(source.preset, source.tokenizer, settings=settings, gguf_file=source.gguf_file)


def start_model(config: TrainConfig, blueprint: Blueprint, world: World) -> tuple[RewardModel, RewardModel | None]:
    """The model that a run starts from, in float32.

    A single process gets the model and None. One of several ranks gets a model on the meta device, to be sharded and then filled
    (see :func:`polar_rm.training.parallel.fill_shards`), and on rank 0 also the model with its weights in host memory.
    """
    implementation = None if config.attention == "auto" else config.attention
    if world.size == 1:
        model = RewardModel.from_blueprint(blueprint, device=str(world.device), implementation=implementation, seed=config.seed)
        return model, None
    skeleton = blueprint.skeleton(implementation, world.device.type)
    source: list[RewardModel] = []
    world.from_main(lambda: source.append(RewardModel.from_blueprint(blueprint, seed=config.seed)))
    model = RewardModel(skeleton, blueprint.encoder, blueprint.specials)
    if source:
        model.untrained = source[0].untrained
    return model, source[0] if source else None


def with_lengths(encoder: Encoder, config: EncoderConfig, source: Path) -> Encoder:
    """The encoder with the lengths of ``config``; the template must be the one that the model was trained with."""
    settings = replace(encoder.settings, **config.settings())
    if settings.template != encoder.settings.template:
        raise ConfigError(
            f"model.encoder.template: {source} was trained with {encoder.settings.template!r}, not {settings.template!r}"
        )
    return Encoder(encoder.source, settings)


def _encode(config: TrainConfig, encoder: Encoder, name: str, paths: list[Path], console: Console) -> EncodedCorpus:
    if corpus := given_corpus(paths, encoder, f"data.{name}", config.data.reference):
        if corpus.rejected:
            say(console, f"{corpus.rejected} bad rows were skipped when the {name} data was encoded, see {corpus.side_file}")
        return corpus
    for path in paths:
        check_manifest(path)
    if note := survey_files(paths, [config.output]).note():
        say(console, f"{name} data: {note}")
    bad = OnBadRow(config.on_bad_row, side_file(config.output / name), strip_prompt=config.data.strip_prompt)
    with show_progress(console, unit="MiB") as progress:
        corpus = encode_corpus(
            paths,
            encoder,
            _cache(config),
            on_bad_row=bad,
            empty_reference=config.data.reference == "empty",
            outputs=[config.output],
            progress=lambda task, done, total, status="": progress(f"{task} {name} data", done, total, status),
            report=lambda message: say(console, message),
        )
    if bad.count:
        say(console, f"{bad.count} bad rows of the {name} data were skipped, see {bad.side_file}")
    for warning in bad.warnings():
        say(console, f"warning: {name} data: {warning}")
    return corpus


def _cache(config: TrainConfig) -> Path:
    return config.data.cache or config.output / "data"


def _open(folder: Path, digest: str, world: World) -> EncodedCorpus:
    """Open the data that rank 0 has opened. What it has just written may take a while to become visible on this node."""

    def read() -> EncodedCorpus:
        corpus = open_corpus(folder)
        if corpus.digest != digest:  # of an earlier run, or a folder of this node's own
            raise Damaged(f"{folder}: another corpus than rank 0's")
        return corpus

    return _retry_until_visible(read, world)


def _check_shared(output: Path, world: World) -> None:
    """Check, before hours of work, that every rank sees the files that rank 0 writes."""
    marker = output / temporary_path(Path("shared")).name

    def write_marker() -> str:
        output.mkdir(parents=True, exist_ok=True)
        marker.touch()
        return marker.name

    name = world.from_main(write_marker)

    def check_marker() -> None:
        if name not in os.listdir(output):
            raise Damaged(f"{output / name}: no such file")

    if not world.is_main:
        _retry_until_visible(check_marker, world)
    world.gather(None)
    if world.is_main:
        marker.unlink()


def _retry_until_visible(read: Callable[[], T], world: World) -> T:
    """The result of ``read``, once it finds the files that rank 0 has written."""
    until = time.monotonic() + _VISIBLE_S
    while True:
        try:
            return read()
        except (Damaged, FileNotFoundError) as error:
            if time.monotonic() > until:
                raise PolarError(
                    f"{socket.gethostname()} (rank {world.rank}) does not see what rank 0 sees ({error}): all nodes need one "
                    "shared folder for output and encoded data"
                ) from error
        time.sleep(min(1.0, _VISIBLE_S / 10))


def _check_dropout(blueprint: Blueprint) -> None:
    """Tree attention has no dropout. Without this check the first step would fail, after hours of encoding."""
    dropout = getattr(blueprint.config, "attention_dropout", None)
    if dropout:
        raise UnsupportedModel(
            f"{blueprint.weights}: attention_dropout is {dropout} in its config, but tree attention has no dropout; set it to 0"
        )


def _check_same_model(blueprint: Blueprint, world: World) -> None:
    """Check that all ranks have the same model: another node may have another one under the same name."""
    shapes = {name: list(tensor.shape) for name, tensor in blueprint.on_meta.state_dict().items()}
    model: dict[str, Any] = {"encoder": blueprint.encoder.hash, "shapes": shapes}
    if world.from_main(lambda: model) != model:
        raise PolarError(f"{socket.gethostname()} (rank {world.rank}) has another model or tokenizer in its folder than rank 0")
