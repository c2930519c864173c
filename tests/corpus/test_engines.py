from functools import partial

import pytest
from support import trajectories

from polar_rm.corpus.engines import run_tasks
from polar_rm.errors import BadRow, PolarError


def refuse(task):
    raise BadRow("file", task, "text", "a string")


def test_a_mistake_in_a_task_is_one_line():
    with pytest.raises(PolarError, match="file: row 7: field 'text'"):
        list(run_tasks(refuse, [7], workers=1))


@pytest.mark.slow
def test_the_tasks_of_a_dead_worker_are_done_by_another(tmp_path):
    assert sorted(run_tasks(partial(trajectories.die_once, tmp_path), range(6), workers=2)) == list(range(6))
    assert {path.name for path in tmp_path.iterdir()} == {"died", *map(str, range(6))}


@pytest.mark.slow
def test_workers_that_always_die_are_given_up(tmp_path):
    with pytest.raises(PolarError, match="died 3 times in a row"):
        list(run_tasks(partial(trajectories.die, tmp_path), range(2), workers=2))
