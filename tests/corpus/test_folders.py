"""Damaged, unfinished and shared input and output folders of a build."""

import json
import os

import pyarrow.parquet as pq
import pytest
from support import runs
from support.owners import owned_elsewhere
from support.trajectories import corpus_config as config
from support.trajectories import zoo

from polar_rm.common.config import load_config
from polar_rm.common.manifests import check_manifest, describe_data_file
from polar_rm.corpus import build as build_module
from polar_rm.corpus.build import build
from polar_rm.corpus.plan import make_plan
from polar_rm.errors import Damaged, MachineFailure, PolarError
from polar_rm.evaluation import evaluate_files
from polar_rm.records import write_records
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import plan


def sampled(folder, rows=None, **changes):
    """A folder with several buckets, as ``polar sample`` writes it."""
    rows, files = rows or zoo(), []
    for number in range(3):
        path = folder / f"trajectories/{number:05d}-of-00003.parquet"
        count = write_records(path, rows[number::3])
        files.append({"file": f"trajectories/{path.name}", **describe_data_file(path, count)})
    (folder / "store.sqlite").touch()
    manifest = {"schema": "polar-rm/trajectories/1", "files": files, "policies": [], **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def remove(folder):
    (folder / "trajectories/00001-of-00003.parquet").unlink()


def truncate(folder):
    path = folder / "trajectories/00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:100])


def add(folder):
    write_records(folder / "trajectories/00000-of-00009.parquet", zoo(1))


def exchange(folder):
    path = folder / "trajectories/00001-of-00003.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def flip(folder):
    path = folder / "trajectories/00001-of-00003.parquet"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "00001-of-00003.parquet: the file is missing, but .*manifest.json lists it"),
        (truncate, "00001-of-00003.parquet: the file has 100 bytes, .*manifest.json says"),
        (add, "00000-of-00009.parquet: .*manifest.json does not list it"),
        (exchange, "00001-of-00003.parquet: the file has "),
    ],
)
def test_trajectories_that_are_not_those_of_the_manifest_are_refused(tmp_path, damage, message):
    """F8."""
    folder = sampled(tmp_path / "o")
    for source in (folder, folder / "trajectories", folder / "trajectories/*.parquet"):
        assert make_plan(config(tmp_path, inputs=[str(source)])).rows == 72
    damage(folder)
    for source in (folder, folder / "trajectories"):
        with pytest.raises(Damaged, match=message):
            make_plan(config(tmp_path, inputs=[str(source)]))
    if damage is not remove:
        with pytest.raises(Damaged, match=message):
            make_plan(config(tmp_path, inputs=[str(folder / "trajectories/*.parquet")]))
    assert not (tmp_path / "out").exists()


def test_contents_are_compared_on_demand_and_by_every_build(tmp_path):
    """F8: sizes and rows are right, but one bit is wrong."""
    folder = sampled(tmp_path / "o")
    flip(folder)
    make_plan(config(tmp_path, inputs=[str(folder)]))
    with pytest.raises(Damaged, match="00001-of-00003.parquet: the content is not what was written"):
        make_plan(config(tmp_path, inputs=[str(folder)], verify=True))
    with pytest.raises(Damaged, match="00001-of-00003.parquet: the content is not what was written"):
        build(config(tmp_path, inputs=[str(folder)]))


def test_a_folder_that_polar_sample_has_not_finished_is_refused(tmp_path):
    """F8."""
    folder = sampled(tmp_path / "o")
    (folder / "manifest.json").unlink()
    for source in (folder, folder / "trajectories"):
        with pytest.raises(PolarError, match="polar sample has not finished here"):
            make_plan(config(tmp_path, inputs=[str(source)]))
    rows = folder / "prompts.jsonl"  # a file of the user's, which is not part of the samples
    rows.write_text("{}")
    check_manifest(rows)


@pytest.mark.parametrize("damage", ["missing", "short", "content", "foreign"])
def test_a_finished_corpus_that_is_damaged_is_refused(tmp_path, damage):
    """F8: the same command reported a finished corpus, and training used the remaining files."""
    settings = config(tmp_path, zoo(), verify=damage == "content")
    build(settings)
    build(settings)
    shard = settings.output / "train/00001.parquet"
    if damage == "missing":
        shard.unlink()
    elif damage == "short":
        shard.write_bytes(shard.read_bytes()[:100])
    elif damage == "foreign":
        (settings.output / "train/00009.parquet").write_bytes(shard.read_bytes())
    else:
        content = bytearray(shard.read_bytes())
        content[40] ^= 1
        shard.write_bytes(content)
    with pytest.raises(Damaged, match=r"0000[19].parquet: .*manifest.json"):
        build(settings)
    for path in (settings.output, settings.output / "train"):
        with pytest.raises(Damaged, match=r"0000[19].parquet"):
            check_manifest(path, full=damage == "content")


def test_a_corpus_in_use_is_refused_and_unchanged(tmp_path):
    """F1: the error handling of the second build removed the files of the first."""
    settings = config(tmp_path, zoo())
    with owned_elsewhere(settings.output, "corpus"):
        (settings.output / "work").mkdir(parents=True)
        (settings.output / "work/mine").touch()
        with pytest.raises(PolarError, match=rf"out: in use by polar corpus on .*, process {os.getpid()}, since"):
            build(settings)
        assert (settings.output / "work/mine").exists()
        make_plan(settings)


def test_finished_tasks_are_kept_after_a_failure_of_the_machine(tmp_path, monkeypatch):
    def full(job, number):
        raise OSError(28, "No space left on device", "x.parquet")

    settings = config(tmp_path, zoo())
    monkeypatch.setattr(build_module, "build_bucket", full)
    with pytest.raises(MachineFailure, match=r"x.parquet: No space left"):
        build(settings)
    assert (settings.output / "work/parts/00000.json").exists()
    monkeypatch.undo()
    assert build(settings)["splits"]["train"]["comparisons"] == 24


def test_few_prompts_in_many_buckets_have_baselines(tmp_path):
    """B4: pairs were drawn only from the first 64 buckets, none of which had a prompt."""
    few, many = (config(tmp_path / str(n), zoo(), buckets=n) for n in (1, 400))
    first, second = build(few), build(many)
    assert second["baselines"] == first["baselines"]
    assert second["baselines"]["overall"]["length"]["pairs"] == 24
    strict = json.loads((many.output / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert 0 <= strict["baselines"]["overall"]["tfidf"]["accuracy"] <= 1


def test_training_and_evaluation_refuse_an_incomplete_corpus(tmp_path):
    """F8."""
    settings = config(tmp_path, zoo())
    build(settings)
    train = settings.output / "train"
    ready = load_config(TrainConfig, [runs.config(tmp_path, data={"train": [str(train)]}, max_steps=1)])
    plan(ready)
    (train / "00001.parquet").unlink()
    with pytest.raises(Damaged, match=r"00001.parquet: the file is missing"):
        plan(ready.model_copy(update={"output": tmp_path / "other"}))
    with pytest.raises(Damaged, match=r"00001.parquet: the file is missing"):
        evaluate_files("no-model", [train])
    (train / "00009.parquet").write_bytes((train / "00000.parquet").read_bytes())
    with pytest.raises(Damaged, match=r"00009.parquet: .* does not list it"):
        evaluate_files("no-model", [train / "*.parquet"])


def test_a_target_that_is_not_writable_is_the_machines_fault(tmp_path):
    """So a build keeps its finished tasks, and the same command continues."""
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(MachineFailure, match=r"x.parquet: could not be written"):
        write_records(tmp_path / "x.parquet", zoo(1))
