import os
from pathlib import Path

import pytest
from support import sampling_runs as local
from support import stub, tiny

from polar_rm.errors import PolarError
from polar_rm.sampling.backends import transformers
from polar_rm.sampling.runner import run_sampling, sample

ray = pytest.importorskip("ray")


class Fragile(transformers.TransformersPolicy):
    """A policy whose process dies once, in the middle of its work."""

    def open(self, machine):
        backend = super().open(machine)
        generate, marker = backend._generate, Path(self.licence)

        def dying(ids, seeds, stop):
            if not marker.exists():
                marker.touch()
                os._exit(1)
            return generate(ids, seeds, stop)

        backend._generate = dying
        return backend


@pytest.fixture(scope="module")
def cluster():
    root = Path(__file__).parents[2]
    paths = ":".join(str(root / path) for path in ("src", "tests"))
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": paths}})
    yield
    ray.shutdown()


@pytest.mark.slow
def test_ray_gives_the_rows_of_the_local_engine_even_if_a_worker_dies(tmp_path, cluster):
    model = tiny.causal_lm(tmp_path / "lm")
    (model / "chat_template.jinja").write_text(local.TEMPLATE)
    chat = local.config(tmp_path, model).policies[0]
    expected = local.rows(sample(local.config(tmp_path, model, batch_size=4, policies=[chat])))
    settings = local.config(tmp_path, model, batch_size=1, engine="ray", output=tmp_path / "ray", policies=[chat])
    sample(settings.model_copy(update={"limit": 1, "engine": "local"}))
    marker = tmp_path / "died"
    fragile = Fragile(**chat.model_dump() | {"licence": str(marker)})
    settings = settings.model_copy(update={"policies": [fragile]})
    report = run_sampling(settings)
    assert marker.exists()
    assert [status.asked for status in report.policies] == [8]  # stored samples are not drawn again
    assert local.rows(report.path) == expected


@pytest.mark.slow
def test_a_policy_that_is_down_is_reported_by_ray_too(tmp_path, cluster):
    with stub.served() as server:
        settings = local.served(tmp_path, server.url, "http://127.0.0.1:9/v1", engine="ray", changes={"retries": 0})
        with pytest.raises(PolarError, match="b: 10 of 10 missing, .*no connection"):
            sample(settings)
        assert len(local.rows(tmp_path / "out/trajectories.parquet")) == 10


def test_ray_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with stub.served() as server, pytest.raises(PolarError, match=r"engine: ray needs the package ray: pip install '?ray"):
        sample(local.served(tmp_path, server.url, engine="ray"))
