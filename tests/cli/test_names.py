"""Ids of the Hub and addresses in the verbs and configs, in this process (A2)."""

import json

import pytest
from support import official, tiny
from typer.testing import CliRunner

from polar_rm.cli.main import app
from polar_rm.cli.options import load
from polar_rm.client.official import RewardModelClient
from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders import find_contenders
from polar_rm.records import ScoreItem
from polar_rm.sampling.config import SamplingConfig
from polar_rm.selection.config import SelectConfig
from polar_rm.serving.config import ServeConfig
from polar_rm.training.config import TrainConfig

PAIR = {"prompt": "2 + 2?", "reference": "4", "chosen": "4", "rejected": "5"}


@pytest.fixture
def names(hub, tmp_path, checkpoint):
    """A native, an ordinary and a language model, and pairs, on the stand-in."""
    folder, _ = checkpoint
    hub.add_folder("org/native", folder)
    hub.add_folder("org/lm", tiny.causal_lm(tmp_path / "lm-source"))
    hub.repository("org/pairs", "dataset").commit({"pairs.jsonl": (json.dumps(PAIR) + "\n").encode()})
    return hub


def test_configs_get_local_paths(names):
    train = load(TrainConfig, ["model.init=org/lm", "data.train=[hf:datasets/org/pairs]", "output=o"])
    commit = names.repository("org/lm").branches["main"]
    assert train.model.init.name == commit and (train.model.init / "model.safetensors").is_file()
    assert train.data.train[0].name == "pairs.jsonl" and train.data.train[0].is_file()
    tuned = load(TrainConfig, ["model.resume_from=hf:org/native", "data.train=[hf:datasets/org/pairs]", "output=o"])
    assert (tuned.model.resume_from / "config.json").is_file()
    preset = load(
        TrainConfig, ["model.preset=1m", "model.tokenizer=hf:org/lm@main", "data.train=[hf:datasets/org/pairs]", "output=o"]
    )
    assert (preset.model.tokenizer / "tokenizer.json").is_file()
    assert (load(ServeConfig, ["model=org/native"]).model / "config.json").is_file()
    chosen = load(SelectConfig, ["inputs=[hf:datasets/org/pairs/pairs.jsonl]", "model=org/native", "output=o"])
    assert chosen.inputs[0].endswith("pairs.jsonl") and chosen.model.endswith(names.repository("org/native").branches["main"])


def test_policies_are_ids_but_servers_names_are_not(names):
    policy = {"name": "a", "family": "f", "kind": "base"}
    values = [
        policy | {"model": "org/lm"},
        policy | {"name": "b", "backend": "openai", "model": "org/served", "base_url": "http://x/v1"},
    ]
    config = load(SamplingConfig, [f"policies={json.dumps(values)}", "prompts=hf:datasets/org/pairs", "source=s", "output=o"])
    assert [each.model.rpartition("/")[2] for each in config.policies] == [names.repository("org/lm").branches["main"], "served"]
    assert config.policies[1].model == "org/served"


def test_contenders_by_id_are_what_their_files_say(names, tmp_path):
    names.add_folder("org/official", official.checkpoint(tmp_path / "official-source"))
    found = find_contenders(
        ["org/native", "a=hf:org/native", "b=hf:org/lm", "c=hf:org/official", "d=org/official", "e=hf:lm-source"]
    )
    assert [contender.kind for contender in found] == ["native", "native", "stock", "native", "native", "stock"]
    assert [contender.name for contender in found] == ["org/native", "a", "b", "c", "d", "e"]


def test_a_verb_scores_a_model_and_data_by_name(names, tmp_path):
    items = "".join(json.dumps({"prompt": "2 + 2?", "reference": "4", "output": each}) + "\n" for each in "45")
    names.repository("org/items", "dataset").commit({"items.jsonl": items.encode()})
    arguments = ["score", "--model", "org/native", "--input", "hf:datasets/org/items", "--output", "scores.jsonl"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2


def test_download_prints_and_copies(names, tmp_path):
    result = CliRunner().invoke(app, ["download", "org/native", "--to", "copy"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().splitlines()[-1] == "copy"
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    assert (tmp_path / "copy/model.safetensors").is_file()
    with pytest.raises(PolarError, match="copy: it exists already"):
        CliRunner().invoke(app, ["download", "org/native", "--to", "copy"], catch_exceptions=False)
    for arguments in (["download", "org/no-such", "--to", "copy"], ["convert", "org/no-such", "copy"]):
        with pytest.raises(PolarError, match="copy: it exists already"):  # before anything is asked for
            CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_calibrate_writes_nothing_into_the_hubs_cache(names):
    with pytest.raises(PolarError, match="nothing is written into the cache of the Hub"):
        CliRunner().invoke(app, ["calibrate", "org/native", "hf:datasets/org/pairs"], catch_exceptions=False)


def test_the_drop_in_client_takes_an_official_id_and_reads_only_its_tokenizer(hub, tmp_path):
    """A2: the official form of the client is an id of the Hub."""
    hub.add_folder("internlm/POLAR-7B", official.checkpoint(tmp_path / "source"))
    client = RewardModelClient("internlm/POLAR-7B", server_address="127.0.0.1:1")
    item = {"prompt": "What is the capital of China?", "reference": "Beijing.", "output": "Shanghai."}
    assert client._ids(item) == official.client_ids(ScoreItem(**item))
    assert not any(name.endswith(".safetensors") for name in hub.downloads())
