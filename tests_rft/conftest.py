"""A running ``polar serve`` with a tiny model. These tests run in a trainer's own environment: ``make test-verl``."""

import signal
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from support import tiny
from support.processes import serve

from polar_rm.encoding.settings import EncoderSettings
from polar_rm.records import ScoreItem
from polar_rm.scoring.scorer import Scorer


@dataclass(frozen=True)
class Served:
    url: str
    folder: Path
    scorer: Scorer

    def rewards(self, items: list[ScoreItem]) -> list[float]:
        """The scorer's rewards, without a server."""
        return [scored.reward for scored in self.scorer.score(items)]

    def requests(self, route: str) -> int:
        """Requests that this route has answered so far."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(
            int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(f'polar_requests_total{{route="{route}"')
        )


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    model = tiny.reward_model(folder / "lm", settings=EncoderSettings(max_length=400, max_response_length=100))
    model.save(folder / "model")
    server = serve(folder / "model", folder / "log")
    try:
        yield Served(server.url, folder / "model", Scorer(model))
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(60)


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    """A folder with a tiny language model, and a tokenizer with a chat template."""
    folder = tiny.causal_lm(tmp_path_factory.mktemp("policy"))
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return folder
