import sqlite3
from dataclasses import replace

import pytest
from support.full_disks import full_after

from polar_rm.errors import MachineFailure, PolarError
from polar_rm.sampling.base import NoSample, Sample
from polar_rm.sampling.store import OutcomeRow, Store

HASHES = {f"p{number}": "hash" for number in range(3)}


def row(number, outcome=None, policy="a"):
    return OutcomeRow(policy, f"p{number}", "hash", 0, number, outcome or Sample(f"text {number}\n\0🙂", "stop", 3))


def test_outcomes_come_back_and_a_sample_replaces_its_failures(tmp_path):
    with Store.open(tmp_path) as store:
        store.claim({"a": {}})
        store.add([row(1), row(2, NoSample("timeout", "slow", 3))], {"a": (3, 0.5)})
        store.add([row(2, NoSample("garbled", "<html>", 2))], {"a": (0, 0.5)})
    with Store.open(tmp_path) as store:
        assert store.sampled("a") == {("p1", 0): "hash"}
        assert store.failures("a", HASHES) == {("p2", 0): NoSample("garbled", "<html>", 5)}
        assert store.samples_of("p1") == {("a", 0): (1, Sample("text 1\n\0🙂", "stop", 3))}
        assert store.throughput("a") == (3, 1.0)
        store.add([row(2), row(2, Sample("another", "stop", 1))], {})
        assert store.failures("a", HASHES) == {}
        assert store.samples_of("p2")["a", 0][1].text.startswith("text 2")  # the first one counts
        assert store.counts() == {"a": 2}


def test_failures_of_another_prompt_do_not_count(tmp_path):
    with Store.open(tmp_path) as store:
        store.claim({"a": {}})
        store.add([row(1, NoSample("too_long", "long", 2))], {})
        other = {"p1": "other"}
        assert store.failures("a", other) == {}
        store.add([replace(row(1, NoSample("timeout", "slow", 3)), prompt_hash="other")], {})
        assert store.failures("a", other) == {("p1", 0): NoSample("timeout", "slow", 3)}
        assert store.failures("a", HASHES) == {}


def test_a_store_of_version_1_opens_and_its_failures_are_asked_again(tmp_path):
    with Store.open(tmp_path) as store:
        store.add([row(1), row(2, NoSample("too_long", "long", 2))], {})
    database = sqlite3.connect(tmp_path / "store.sqlite")
    database.executescript("ALTER TABLE failures DROP COLUMN prompt_hash; PRAGMA user_version = 1")
    database.close()
    for _ in range(2):
        with Store.open(tmp_path) as store:
            assert store.counts() == {"a": 1}
            assert store.failures("a", HASHES) == {}
    with Store.open(tmp_path) as store:
        store.add([row(2, NoSample("too_long", "long", 1))], {})
        assert store.failures("a", HASHES) == {("p2", 0): NoSample("too_long", "long", 1)}


def test_other_settings_of_a_policy_are_refused_once_it_has_samples(tmp_path):
    before = {"model": "m", "decoding": {"top_k": 50}, "seed": 0}
    with Store.open(tmp_path) as store:
        store.claim({"a": before | {"model": "misspelt"}})
        store.add([row(1, NoSample("refused", "no", 1))], {})
        store.claim({"a": before})  # the policy has no samples yet: its settings may be corrected
        assert store.failures("a", HASHES) == {}
        store.add([row(1)], {})
        store.claim({"a": before, "b": {"model": "other"}})
        with pytest.raises(
            PolarError, match=r"policy 'a' with other settings \(decoding.top_k: 50 there, 9 now; seed: 0 there, 1 now\)"
        ):
            store.claim({"a": before | {"seed": 1, "decoding": {"top_k": 9}}})


def test_a_full_disk_loses_nothing_that_was_stored(tmp_path):
    with Store.open(tmp_path) as store:
        store.claim({"a": {}})
        store.add([row(1)], {})
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(PolarError, match="the disk is full"):
            store.add([row(2, Sample("x" * 100_000, "stop", 1))], {})
        assert store.counts() == {"a": 1}
    with Store.open(tmp_path) as store:
        store.add([row(2, Sample("x" * 100_000, "stop", 1))], {})
        assert store.counts() == {"a": 2}


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with Store.open(tmp_path), pytest.raises(PolarError, match="another run has it open"), Store.open(tmp_path):
        pass


def test_stores_that_others_wrote_are_refused(tmp_path):
    with Store.open(tmp_path):
        pass
    database = sqlite3.connect(tmp_path / "store.sqlite")
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(PolarError, match="a store of version 7, this release knows 2"), Store.open(tmp_path):
        pass
    (tmp_path / "other").mkdir()
    database = sqlite3.connect(tmp_path / "other/store.sqlite")
    database.execute("CREATE TABLE things (x)")
    database.close()
    with pytest.raises(PolarError, match="not a store of polar sample"), Store.open(tmp_path / "other"):
        pass
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/store.sqlite").write_text("no database at all, but long enough to be looked at" * 20)
    with pytest.raises(PolarError, match="file is not a database"), Store.open(tmp_path / "damaged"):
        pass
    (tmp_path / "old/store").mkdir(parents=True)
    with pytest.raises(PolarError, match="samples of an older version"), Store.open(tmp_path / "old"):
        pass


def test_a_dry_run_makes_no_file(tmp_path):
    """B28."""
    with Store.read(tmp_path / "none") as store:
        assert store.counts() == {}
    assert not (tmp_path / "none").exists()
    with Store.open(tmp_path) as store:
        store.claim({"a": {}})
        store.add([row(1)], {})
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    with Store.read(tmp_path) as store:
        assert store.counts() == {"a": 1}
        assert {path.name for path in tmp_path.iterdir()} == before.keys()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_a_full_disk_for_the_copy_of_a_store_is_not_blamed_on_the_store(tmp_path):
    """F13. The error of a copy names the file that is read."""
    with Store.open(tmp_path) as writer:
        writer.add([row(1)], {})
        with full_after(10), pytest.raises(MachineFailure) as caught, Store.read(tmp_path):
            pass
    assert str(tmp_path) not in str(caught.value) and "could not be written: " in str(caught.value)


def test_a_store_is_read_while_a_run_fills_it(tmp_path):
    """B28: a reader also sees the last samples, which are in the writer's log, in spite of the writer's exclusive lock."""
    with Store.open(tmp_path) as writer:
        writer.claim({"a": {}})
        for number in range(3):
            writer.add([row(number)], {})
            names = {path.name for path in tmp_path.iterdir()}
            with Store.read(tmp_path) as store:
                assert store.counts() == {"a": number + 1}
            assert {path.name for path in tmp_path.iterdir()} == names
        writer.add([row(4)], {})
    assert not list(tmp_path.glob("*-wal"))


def test_a_store_of_version_1_is_read_and_stays_one(tmp_path):
    """B28."""
    with Store.open(tmp_path) as store:
        store.add([row(1), row(2, NoSample("too_long", "long", 2))], {})
    database = sqlite3.connect(tmp_path / "store.sqlite")
    database.executescript("ALTER TABLE failures DROP COLUMN prompt_hash; PRAGMA user_version = 1")
    database.close()
    before = (tmp_path / "store.sqlite").read_bytes()
    with Store.read(tmp_path) as store:
        assert store.counts() == {"a": 1}
        assert store.failures("a", HASHES) == {}
    assert (tmp_path / "store.sqlite").read_bytes() == before


def test_samples_without_checksums_of_the_model_stay_usable_and_others_do_not(tmp_path):
    """F10: earlier releases stored no checksums of a model's files."""
    with Store.open(tmp_path) as store:
        store.claim({"a": {"seed": 0}})
        store.add([row(1)], {})
        store.claim({"a": {"seed": 0, "files": {"model.safetensors": "1"}}})
        with pytest.raises(PolarError, match='files.model.safetensors: "1" there, "2" now'):
            store.claim({"a": {"seed": 0, "files": {"model.safetensors": "2"}}})
