"""The files for clusters in docs/clusters, as far as they can be checked without one."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from polar_rm.common.config import load_config
from polar_rm.training.config import TrainConfig

CLUSTERS = Path(__file__).parents[2] / "docs/clusters"


def documents():
    return list(yaml.safe_load_all((CLUSTERS / "train.yaml").read_text()))


def test_the_job_follows_the_schema_of_kubernetes():
    for document in documents():
        kubernetes_validate.validate(document, "1.37", strict=True)
    [_, job] = documents()
    job["spec"]["completionMod"] = job["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError, match="completionMod"):
        kubernetes_validate.validate(job, "1.37", strict=True)


def test_the_jobs_address_is_its_first_pod():
    service, job = documents()
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    endpoint = f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert endpoint in container["command"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--nnodes={job['spec']['completions']}" in container["command"]


def keys_of(words):
    return [word for word in words if "=" in word and not word.startswith("-")]


def test_the_settings_of_both_exist():
    [_, job] = documents()
    in_job = keys_of(job["spec"]["template"]["spec"]["containers"][0]["command"])
    in_script = re.search(r"polar_rm pretrain \"\$@\" (.*) &", (CLUSTERS / "train.sbatch").read_text())
    assert in_script
    for settings in (in_job, [*in_job, *keys_of(shlex.split(in_script[1]))]):
        config = load_config(TrainConfig, ["recipe:pretrain"], settings)
        assert config.shard_ranks == 8
        assert config.checkpoint_every == 100


def test_the_script_for_slurm_is_valid_bash():
    subprocess.run(["bash", "-n", CLUSTERS / "train.sbatch"], check=True)
