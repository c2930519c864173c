"""``polar serve --model internlm/POLAR-7B``: downloaded, converted and served, with the scores of the official code."""

from __future__ import annotations

import urllib.request

import pytest
from support import official
from support.processes import serve

from polar_rm.client import RewardClient
from polar_rm.records import ScoreItem

PROMPT, REFERENCE, OUTPUTS = "What is the capital of China?", "Beijing.", ("Beijing.", "Shanghai.", "")


@pytest.mark.slow
def test_an_id_is_downloaded_converted_and_served_with_the_official_scores(hub, tmp_path):
    """The Hub is a stand-in that holds a tiny official checkpoint; ids and scores come from the official maths in plain torch."""
    folder = official.checkpoint(tmp_path / "POLAR-7B")
    commit = hub.add_folder("internlm/POLAR-7B", folder, **{"modeling_internlm2.py": b"raise SystemExit"})
    items = [ScoreItem(prompt=PROMPT, reference=REFERENCE, output=output) for output in OUTPUTS]
    process = serve("internlm/POLAR-7B", tmp_path / "log")
    try:
        with RewardClient(process.url) as client:
            served = [outcome.reward for outcome in client.score(items)]
        with urllib.request.urlopen(f"{process.url}/", timeout=60) as page:
            assert page.status == 200
    finally:
        process.process.terminate()
        process.process.wait(60)
    values = official.config()
    weights = official.weights(values)
    assert served == [pytest.approx(official.reward(values, weights, official.client_ids(item)), abs=2e-3) for item in items]
    assert len(set(served)) == len(OUTPUTS)
    log = (tmp_path / "log").read_text()
    assert "downloading internlm/POLAR-7B from" in log and "converted once, exactly" in log and commit[:12] in log
    assert not any(name.endswith(".py") for name in hub.downloads())
