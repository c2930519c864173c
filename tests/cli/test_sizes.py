"""F12: what a number in a config, or an option, can cost. A slip of a digit is one line with the bound, before any work."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from support import runs, sampling_runs

from polar_rm.cli import main as cli
from polar_rm.common import engines, memory
from polar_rm.common.config import Config, load_config
from polar_rm.corpus.config import CorpusConfig
from polar_rm.corpus.plan import make_plan as make_corpus_plan
from polar_rm.errors import ConfigError, PolarError
from polar_rm.rft.config import RftConfig
from polar_rm.sampling import plan as sampling_plan
from polar_rm.sampling.backends.openai import OpenAIPolicy
from polar_rm.sampling.backends.transformers import TransformersPolicy
from polar_rm.sampling.config import SamplingConfig
from polar_rm.scaling.config import ScalingConfig
from polar_rm.serving.config import ServeConfig
from polar_rm.training import plan as training_plan
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import World
from polar_rm.training.prepare import prepare
from polar_rm.training.trainer import Trainer

# Numbers of which nothing is made: they count what is there, or the data bounds them.
BOUNDED_BY_DATA = {
    "TrainConfig": {"batch_size", "epochs", "max_steps", "eval_every", "checkpoint_every", "keep_checkpoints"}
    | {"shard_ranks", "activation_checkpointing"},  # it divides the ranks; by the layers
    "DataConfig": {"identical_steps"},
    "ModelConfig": {"n_layers"},
    "EncoderConfig": {"max_response_length"},  # by max_length
    "LoraConfig": {"alpha"},
    "SamplingConfig": {"limit"},
    "Assignment": {"policies"},
    "Prefixes": {"count", "min_tokens", "max_tokens"},
    "Decoding": {"top_k", "max_new_tokens"},  # by the context
    "TransformersPolicy": {"step", "samples", "n_layers"},  # samples: by the machine's memory
    "OpenAIPolicy": {"step", "samples", "retries"},
    "VLLMPolicy": {"step", "samples"},
    "Continuations": {"negatives", "uses", "min_beginning", "min_continuation", "max_characters"},
    "Pairing": {"positives", "negatives", "per_prompt", "per_policy"},
    "Splits": {"policies"},
    "Decontamination": {"n"},
    "Reporting": {"pairs"},
    "ScalingConfig": {"sizes", "eval_limit"},
    "ServeConfig": {"max_items", "max_queue_tokens"},
    "EvaluateConfig": {"every", "top_k", "max_new_tokens"},  # by the steps, the vocabulary and the context
    "Rules": {"min_words", "max_words"},
    "MonitorConfig": {"window"},  # by the logged rows
}


def unbounded(kind: type[Config]) -> Iterator[tuple[str, str]]:
    """Group and key of every integer without an upper bound."""
    schema = kind.model_json_schema()
    for name, group in {kind.__name__: schema, **schema.get("$defs", {})}.items():
        for key, field in group.get("properties", {}).items():
            for each in (field, *field.get("anyOf", ())):
                if each.get("type") == "integer" and not {"maximum", "exclusiveMaximum"} & each.keys():
                    yield name, key


@pytest.mark.parametrize("kind", [TrainConfig, SamplingConfig, CorpusConfig, ServeConfig, RftConfig, ScalingConfig])
def test_every_whole_number_has_a_bound_or_nothing_is_made_of_it(kind):
    assert {(name, key) for name, key in unbounded(kind) if key not in BOUNDED_BY_DATA.get(name, ())} == set()


HUGE = 10**12
TRAIN = ["output=o", "model.init=lm", "data.train=[a.jsonl]"]
CORPUS = ["output=o", "inputs=[a.jsonl]"]
POLICY = {"name": "a", "family": "f", "kind": "chat", "model": "m"}


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        (TrainConfig, [*TRAIN, f"row_tokens={HUGE}"], "row_tokens: .*less than or equal to 16777216, not 1000000000000"),
        (TrainConfig, [*TRAIN, f"model.encoder.max_length={HUGE}"], "max_length: .*less than or equal to 16777216"),
        (TrainConfig, [*TRAIN, f"lora.rank={HUGE}"], "lora.rank: .*less than or equal to 65536"),
        (CorpusConfig, [*CORPUS, "buckets=100000"], "buckets: .*less than or equal to 99999, not 100000"),
        (CorpusConfig, [*CORPUS, f"workers={HUGE}"], "workers: .*less than or equal to 65536"),
        (ServeConfig, ["model=rm", f"row_tokens={HUGE}"], "row_tokens: .*less than or equal to 16777216"),
        (ServeConfig, ["model=rm", f"max_body_mib={HUGE}"], "max_body_mib: .*less than or equal to 4096"),
    ],
)
def test_the_bound_is_told(kind, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(kind, [], overrides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": 100_000}, "buckets"),
        ({"batch_size": HUGE}, "batch_size"),
        ({"policies": [{**POLICY, "ray": {"actors": HUGE}}]}, "actors"),
        ({"policies": [{**POLICY, "backend": "openai", "base_url": "http://h/v1", "concurrency": HUGE}]}, "concurrency"),
    ],
)
def test_the_bound_of_a_sampling_run_is_told(tmp_path, changes, message):
    values = {"output": "o", "prompts": "p.jsonl", "source": "s", "policies": [POLICY], **changes}
    with pytest.raises(ConfigError, match=rf"{message}: .*less than or equal to [0-9]+, not [0-9]+"):
        load_config(SamplingConfig, [], [f"{key}={value}" for key, value in values.items()])


@pytest.mark.parametrize("command", ["score --model rm --input i --output o.jsonl", "evaluate f --model rm", "serve --model rm"])
def test_the_bound_of_an_option_is_told(monkeypatch, capsys, tmp_path, command):
    (tmp_path / "rm").mkdir()
    for name in ("rm/config.json", "i", "f"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["polar", *command.split(), "--row-tokens", str(HUGE)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "16777216" in capsys.readouterr().err


def test_more_workers_than_the_machine_can_use_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_cores", lambda: 2)
    config = load_config(CorpusConfig, [], [f"output={tmp_path}/o", f"inputs=[{tmp_path}/a.jsonl]", "workers=33"])
    with pytest.raises(PolarError, match="workers: 33 processes are too many for the 2 cores of this machine, which takes 32"):
        make_corpus_plan(config)
    with pytest.raises(PolarError, match="no such file"):  # what comes next
        make_corpus_plan(config.model_copy(update={"workers": 32}))
    with pytest.raises(PolarError, match="no such file"):  # a cluster has its own number
        make_corpus_plan(config.model_copy(update={"workers": 33, "engine": "ray"}))


@pytest.mark.parametrize("policy", [TransformersPolicy, OpenAIPolicy])
def test_samples_are_counted_before_they_are_planned(tmp_path, monkeypatch, policy):
    further = {"base_url": "http://127.0.0.1:9/v1", "backend": "openai"} if policy is OpenAIPolicy else {}
    policies = [{**POLICY, **further, "samples": 2}]
    prompts = sampling_runs.write_prompts(tmp_path)  # five
    values = {"output": str(tmp_path / "o"), "prompts": str(prompts), "source": "s", "policies": policies}
    config = SamplingConfig.model_validate(values)
    monkeypatch.setattr(sampling_plan, "machine_memory", lambda: 10 * 300)
    assert sampling_plan.make_plan(config).size("a") == 10
    monkeypatch.setattr(sampling_plan, "machine_memory", lambda: 10 * 300 - 1)
    with pytest.raises(PolarError, match="policy 'a': 10 planned samples need 0.0 GiB of memory, this machine has 0.0 GiB"):
        sampling_plan.make_plan(config)


def test_a_run_that_has_no_room_is_noted_in_its_plan_and_not_begun(tmp_path, monkeypatch):
    config = load_config(TrainConfig, [runs.config(tmp_path)])
    alone = World(0, 1, torch.device("cpu"))
    needed = Trainer(config, alone).plan.state_bytes
    monkeypatch.setattr(training_plan, "memory_of", lambda device: (needed - 1, "this machine"))
    prepared = prepare(config, alone)
    assert any("need 0.0 GiB of memory, this machine has 0.0 GiB" in note for note in prepared.plan.notes)
    with pytest.raises(PolarError, match="weights, gradients and optimiser need 0.0 GiB of memory, this machine has 0.0 GiB"):
        Trainer(config, alone, prepared)
    plan = prepared.plan
    training_plan.check_room(plan, "cpu", n_ranks=2, n_here=1)
    training_plan.check_room(plan, "cuda:1", n_ranks=2, n_here=2)
    with pytest.raises(PolarError, match="need"):
        training_plan.check_room(plan, "cpu", n_ranks=2, n_here=2)


def test_what_the_machine_has_is_bounded_by_its_container(monkeypatch):
    whole = memory.machine_memory()
    assert whole is not None and whole > 1 << 28
    monkeypatch.setattr(memory, "_text", lambda path: "1000000" if path.startswith("/sys") else "")
    assert memory.machine_memory() == 1_000_000
    monkeypatch.setattr(memory, "_text", lambda path: "max" if path.startswith("/sys") else "SwapTotal:  1024 kB\nx: 1")
    total = memory.machine_memory()
    monkeypatch.setattr(memory, "_text", lambda path: "")
    assert total - memory.machine_memory() == 1 << 20


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("x"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
    ],
)
def test_memory_that_ran_out_is_one_line(monkeypatch, capsys, error):
    def fails():
        raise error

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("polar: error: out of memory: ")


def test_another_error_of_a_library_keeps_its_traceback(monkeypatch):
    def fails():
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main()
