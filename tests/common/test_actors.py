"""Order, deaths and errors of actors, with a stand-in for Ray; ``tests/scoring/test_remote.py`` uses Ray itself."""

import sys

import pytest
from support.actors import ActorDied, StandIn

from polar_rm.common.actors import RayActors, map_on_actors
from polar_rm.errors import BadRow, MachineFailure, PolarError, ScoreError


@pytest.fixture
def ray(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    return stand_in


def squares(deaths=None):
    """A function like those that actors load. deaths: how often each input still kills its actor; changes."""
    deaths = {} if deaths is None else deaths

    def square(value):
        if deaths.get(value):
            deaths[value] -= 1
            raise ActorDied
        if value == 13:
            raise ScoreError("no square of 13")
        if value == 14:
            raise BadRow("file", value, "text", "a string")
        return value * value

    return lambda: square


def test_results_keep_the_order_of_inputs_which_are_read_as_they_are_needed(ray):
    sent = []
    results = map_on_actors(squares(), (sent.append(n) or n for n in range(100, 140)), RayActors(actors=3, cpus=2, gpus=0.5))
    assert next(results) == 100**2  # the stand-in ends the newest call first
    assert len(sent) == 12
    assert [100**2, *results] == [n * n for n in range(100, 140)]
    assert ray.most_waiting == 6
    assert ray.started == [{"num_cpus": 2, "num_gpus": 0.5}] * 3
    assert ray.killed == 3


def test_a_dead_actor_is_replaced_once_and_its_inputs_are_computed_again(ray):
    results = map_on_actors(squares({3: 1, 8: 2}), range(12), RayActors(actors=2))
    assert list(results) == [n * n for n in range(12)]
    assert len(ray.started) == 2 + 3


def test_deaths_in_a_row_end_the_run_but_not_those_between_results(ray):
    with pytest.raises(MachineFailure, match="died 6 times in a row"):
        list(map_on_actors(squares({5: 99}), range(5, 6), RayActors(actors=2)))
    assert list(map_on_actors(squares(dict.fromkeys(range(12), 2)), range(12), RayActors())) == [n * n for n in range(12)]
    assert len(ray.started) == (2 + 6) + (1 + 24)


def test_errors_come_after_the_results_before_them(ray):
    results = map_on_actors(squares(), [1, 2, 13, 4], RayActors(actors=2))
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(ScoreError, match="no square of 13"):
        next(results)
    assert ray.killed == 2
    with pytest.raises(PolarError, match="file: row 14: field 'text': expected a string") as error:
        next(map_on_actors(squares(), [14], RayActors()))
    assert not isinstance(error.value, BadRow)  # which can't be unpickled

    def failing():
        yield from (5, 6)
        raise BadRow("file", 3, "text", "a string")

    results = map_on_actors(squares(), failing(), RayActors())
    assert [next(results), next(results)] == [25, 36]
    with pytest.raises(BadRow, match="row 3"):
        next(results)
