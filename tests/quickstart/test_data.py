"""The packaged corpus agrees with its provenance and its configs, and contains what `polar quickstart` needs."""

from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from polar_rm.common.config import load_config
from polar_rm.common.files import read_json, sha256
from polar_rm.corpus.config import CorpusConfig
from polar_rm.quickstart.pipeline import LIVE_POLICIES, RANKING
from polar_rm.records import read_trajectories
from polar_rm.sampling.config import SamplingConfig

DATA = Path(str(files("polar_rm.quickstart") / "data"))


@pytest.fixture(scope="module")
def rows():
    return list(read_trajectories(DATA / "trajectories.parquet"))


@pytest.fixture(scope="module")
def provenance():
    return read_json(DATA / "provenance.json")


def test_files_and_counts_are_those_of_the_provenance(rows, provenance):
    assert {name: sha256(DATA / name) for name in provenance["files"]} == provenance["files"]
    assert provenance["files"].keys() >= {"policies.yaml", "prompts.jsonl", "corpus.yaml", "trajectories.parquet"}
    assert Counter(row.policy for row in rows) == {name: each["sampled"] for name, each in provenance["policies"].items()}
    assert len({row.prompt_id for row in rows}) == provenance["n_prompts"]
    assert "Apache-2.0" in provenance["licence"]
    assert (DATA / "trajectories.parquet").stat().st_size < 10e6
    assert (DATA / "provenance.json").stat().st_size < 10e3


def test_every_planned_sample_occurs_once_and_has_a_text_or_is_a_known_failure(rows, provenance):
    zoo = load_config(SamplingConfig, [DATA / "policies.yaml"])
    planned = {(policy.name, number) for policy in zoo.policies for number in range(policy.samples)}
    samples = defaultdict(list)
    for row in rows:
        samples[row.prompt_id].append((row.policy, row.sample_id))
    assert all(len(keys) == len(set(keys)) and set(keys) <= planned for keys in samples.values())
    missing = Counter(policy for keys in samples.values() for policy, _ in planned - set(keys))
    assert missing == Counter({name: sum(each["failures"].values()) for name, each in provenance["policies"].items()})
    assert missing.total() <= 1
    assert all(row.text.strip() for row in rows)


def test_many_policies_and_checkpoints_of_one_model(rows):
    policies = {row.policy: row.metadata for row in rows}
    assert len(policies) >= 6
    assert {*RANKING, *LIVE_POLICIES} < policies.keys()
    assert set(load_config(CorpusConfig, [DATA / "corpus.yaml"]).splits.policies) < policies.keys()
    steps = defaultdict(set)
    for metadata in policies.values():
        if "checkpoint_of" in metadata:
            steps[metadata["checkpoint_of"]].add(metadata["step"])
    assert any(len(steps_of_run) >= 3 for steps_of_run in steps.values())
