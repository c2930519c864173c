"""Lineage: the policies that are one model."""

import json

import pytest
from support import trajectories
from support.sampling_runs import served
from support.trajectories import corpus_config as config

from polar_rm.corpus.build import build
from polar_rm.corpus.lineage import Lineage, lineage
from polar_rm.records import Trajectory
from polar_rm.sampling.runner import sample


@pytest.fixture
def server():
    from support import stub

    with stub.served() as running:
        yield running


def known(tmp_path, entries, rows=(), **changes):
    """The lineage of policies with these entries in a manifest of ``polar sample``."""
    manifest = {"schema": "polar-rm/trajectories/1", "policies": entries}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    policies = sorted({entry["policy"] for entry in entries} - {"unselected"})
    return lineage(config(tmp_path, **changes), [tmp_path / "rows.parquet"], policies, list(rows))


BASE = {"policy": "small-base", "family": "small", "model": "models/small-base"}
STEP = {"policy": "small-base-1000", "family": "small", "model": "models/small-base-1000", "checkpoint_of": "small-base"}
OTHER = {"policy": "small-chat", "family": "small", "model": "models/small-chat"}


def test_a_checkpoint_and_its_run_are_the_same_model_with_a_manifest_beside_the_files(tmp_path):
    """B2: the recipe's own zoo."""
    result = known(tmp_path, [BASE, STEP, OTHER])
    assert result.distance("small-base", "small-base-1000") == result.distance("small-base-1000", "small-base") == "same_model"
    assert result.distance("small-base-1000", "small-chat") == "same_family"
    # Manifests of earlier versions do not repeat facts that are in the rows.
    old = {key: value for key, value in STEP.items() if key != "checkpoint_of"}
    rows = [{"family": {}, "checkpoint_of": {"small-base-1000": ["small-base"]}, "wrapper": {}}]
    assert known(tmp_path, [BASE, old], rows).distance("small-base", "small-base-1000") == "same_model"


def test_other_ways_to_be_one_model(tmp_path):
    """B2."""
    later = STEP | {"policy": "later", "checkpoint_of": "small-base-1000"}
    prompted = BASE | {"policy": "prompted"}
    by_path = STEP | {"policy": "by-path", "checkpoint_of": "models/small-base"}
    names = ("small-base-1000", "later", "prompted", "by-path")
    result = known(tmp_path, [BASE, STEP, later, prompted, by_path])
    assert {result.distance("small-base", name) for name in names} == {"same_model"}
    # Checkpoints of a run that is not a policy, of a policy that is not selected, and of each other.
    runs = [STEP | {"policy": name, "model": name, "checkpoint_of": "run"} for name in "ab"]
    assert known(tmp_path, runs).distance("a", "b") == "same_model"
    unselected = [BASE | {"policy": "unselected"}, BASE, STEP | {"checkpoint_of": "unselected"}]
    assert known(tmp_path, unselected).distance("small-base", "small-base-1000") == "same_model"
    cycle = [STEP | {"policy": "a", "checkpoint_of": "b"}, STEP | {"policy": "b", "checkpoint_of": "a"}]
    assert known(tmp_path, cycle).distance("a", "b") == "same_model"
    by_settings = known(tmp_path, [BASE, prompted], models={"prompted": "prompted"})
    assert by_settings.distance("small-base", "prompted") == "same_family"
    assert Lineage().distance("a", "b") == "unknown"


def test_a_corpus_of_a_real_zoo_knows_its_checkpoints(tmp_path, server):
    """B2, from ``polar sample`` to the report."""
    settings = served(tmp_path, server.url, server.url, prompts=4)
    first, second = settings.policies
    second = second.model_copy(update={"model": "m-1000", "checkpoint_of": "a", "step": 1000, "family": "fa"})
    sample(settings.model_copy(update={"policies": [first, second]}))
    report = build(config(tmp_path, inputs=[str(settings.output)], output=tmp_path / "corpus"))
    assert report["pairs_by_distance"].keys() == {"same_model"}
    assert report["baselines"]["by_distance"].keys() == {"same_model"}


def test_the_kept_one_of_two_equal_texts_does_not_depend_on_their_order(tmp_path):
    """buc-2: the finish_reason decides how a text is cleaned."""
    text = "A whole sentence that is longer than half of all. And so on.\nA line that the limit ended in the"
    equal = [Trajectory("t", "p0", "prompt 0", "a", 9, text, finish_reason=reason) for reason in ("length", "stop")]
    built = []
    for number, pair in enumerate((equal, equal[::-1])):
        settings = config(tmp_path / str(number), [*trajectories.zoo(1), *pair], pairing={"positives": 3, "negatives": 3})
        report = build(settings)
        built.append({path.name: path.read_bytes() for path in settings.output.glob("train/*.parquet")})
        assert report["counts"]["trajectories"]["duplicates"] == 1
        assert report["cleaning"]["unfinished_endings"]["texts"] == 1
    assert built[0] == built[1] != {}
