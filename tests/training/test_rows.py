"""The rows of coming steps, which a thread makes, are those that the step would make itself."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from support import runs

from polar_rm.common.config import load_config
from polar_rm.encoded.corpus import EncodedCorpus
from polar_rm.encoded.format import NUMBERS
from polar_rm.errors import Damaged
from polar_rm.training.config import LossConfig, TrainConfig
from polar_rm.training.losses import count_items, item_name
from polar_rm.training.parallel import World
from polar_rm.training.prepare import prepare
from polar_rm.training.rows import RowMaker, Step, ahead
from polar_rm.training.trainer import train


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    config = load_config(TrainConfig, [runs.config(tmp_path_factory.mktemp("run"))], ["data.identical_steps=4", "row_tokens=150"])
    return config, prepare(config, World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("objective", ["bradley_terry", "listwise"])
def test_the_numbers_of_a_comparison_are_those_of_its_tree(prepared, objective):
    corpus, loss = prepared[1].train_set, LossConfig(objective=objective)
    for index in range(len(corpus)):
        tree = corpus[index]
        numbers = dict(zip(NUMBERS, corpus.numbers[index].tolist(), strict=True))
        assert (numbers["tokens"], numbers["candidates"]) == (tree.n_tokens, len(tree.ranks))
        assert numbers[item_name(loss)] == count_items([tree.ranks], loss)


@pytest.mark.parametrize("step", [1, 4])
def test_ranks_together_have_every_tree_once_and_read_no_other(prepared, monkeypatch, step):
    config, ready = prepared
    corpus, read = ready.train_set, []
    get = EncodedCorpus.__getitem__
    monkeypatch.setattr(EncodedCorpus, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    indices = list(range(5, 29))
    trees = [get(corpus, i) for i in indices]
    seen, heads, all_read = [], [], []
    for rank in range(3):
        read.clear()
        made = RowMaker(config, World(rank, 3, torch.device("cpu")), ready.encoder, False).steps(corpus, [(step, indices)])
        head = next(made)
        rows = list(made)
        assert isinstance(head, Step) and len(rows) == head.n_rows
        heads.append((head.items, head.candidates, head.n_rows))
        own = [i for in_row, _ in rows for i in in_row]
        assert all(row.ranks == tuple(get(corpus, i).ranks for i in in_row) for in_row, row in rows if in_row)
        if step >= config.data.identical_steps:  # before, the trees that change have to be read for their new lengths
            assert sorted(read) == sorted(own)
        seen += own
        all_read += read
    assert sorted(seen) == indices
    assert set(heads) == {
        (count_items([tree.ranks for tree in trees], config.loss), sum(len(tree.ranks) for tree in trees), heads[0][2])
    }
    assert all_read


def test_values_come_in_order_and_the_thread_ends_with_the_block():
    with ahead(iter(range(100)), depth=3) as values:
        assert list(values) == list(range(100))
    before = threading.active_count()
    made = []

    def endless():
        while True:
            made.append(0)
            yield len(made)

    with ahead(endless(), depth=3) as values:
        assert [next(values) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert threading.active_count() == before
    assert 5 <= len(made) <= 10  # no more than the depth ahead


def test_an_error_is_raised_in_the_place_of_its_value():
    def failing():
        yield 1
        raise Damaged("shard 3")

    with ahead(failing()) as values:
        assert next(values) == 1
        with pytest.raises(Damaged, match="shard 3"):
            next(values)


def test_a_step_logs_how_long_it_waited_for_its_rows(tmp_path, monkeypatch):
    steps = RowMaker.steps

    def slow(self, *arguments):
        for value in steps(self, *arguments):
            if isinstance(value, Step):
                time.sleep(0.3)
            yield value

    monkeypatch.setattr(RowMaker, "steps", slow)
    results = train(load_config(TrainConfig, [runs.config(tmp_path)], ["max_steps=1"]))
    assert 0.2 < results["train"]["data_seconds"] < results["train"]["seconds"]


def test_a_damaged_shard_ends_the_run_with_its_name(tmp_path):
    """F6: training never goes on with tokens that are not those that were written."""
    config = load_config(TrainConfig, [runs.config(tmp_path)], ["max_steps=2"])
    ready = prepare(config, World(0, 1, torch.device("cpu")))
    [shard] = (tmp_path / "run/data").glob("*/shards/*.arrow")
    content = bytearray(shard.read_bytes())
    tokens = np.array(ready.train_set[0].prefix, np.int32).tobytes()
    content[content.index(tokens)] ^= 1
    shard.write_bytes(content)
    with pytest.raises(Damaged, match=r"000000.arrow: comparison 1 is not what was written .its checksum differs.*--verify"):
        EncodedCorpus(ready.train_set.folder)[0]
    for other in range(1, 40):
        EncodedCorpus(ready.train_set.folder)[other]
