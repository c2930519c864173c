"""Reward servers, ours or those of other engines, accessed by the client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from polar_rm.client.blocking import RewardClient
from polar_rm.common.iteration import windows
from polar_rm.conversion.official import native_folder
from polar_rm.errors import ScoreError
from polar_rm.evaluation.contenders.base import Contender, ModelOptions
from polar_rm.evaluation.pairs import NotedScores
from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.records import Comparison, items_of
from polar_rm.rewards.outcomes import Failure, Reward

# The number of comparisons that are sent together; enough for all connections of a client.
_WINDOW = 512


class Server(Contender):
    """``http://HOST:PORT`` of our server. Other engines need the folder of the encoder, too: ``http://HOST:PORT#FOLDER``."""

    kind = "server"

    def __init__(self, name: str, address: str, options: ModelOptions) -> None:
        super().__init__(name)
        self.source = address
        self._url, _, folder = address.partition("#")
        self._model = Path(folder) if folder else None
        self._options = options
        self._connected: RewardClient | None = None

    def check(self) -> None:
        """Check that a known server answers, and that it encodes as the folder does.

        Raises:
            PolarError: the check fails, or there is no such folder.
        """
        if self._model:
            self._model = native_folder(self._model)
        with self._client() as client:
            client.check()
            if client.encoder:
                self.facts["encoder_hash"] = client.encoder.hash

    def load(self) -> ComparisonScorer:
        """A scorer with its own client."""
        self._connected = self._client()
        return ServedScorer(self.name, self._connected)

    def release(self) -> None:
        """Close the connections."""
        if self._connected:
            self._connected.close()

    def _client(self) -> RewardClient:
        return RewardClient(self._url, model=self._model, api_key=self._options.api_key)


class ServedScorer:
    """Scores candidates by requests to a server."""

    def __init__(self, name: str, client: RewardClient) -> None:
        self._name, self._client = name, client

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """A list of scores for each comparison, with the notes of the server.

        Raises:
            ScoreError: a candidate has no reward; the message names the candidate and the reason.
        """
        number = 0
        for window in windows(comparisons, _WINDOW):
            items = [item for comparison in window for item in items_of(comparison)]
            outcomes = iter(self._client.score(items))
            for comparison in window:
                number += 1
                rewards: list[Reward] = []
                for index in range(len(comparison.candidates)):
                    outcome = next(outcomes)
                    if isinstance(outcome, Failure):
                        label = f"{self._name}: candidate {index + 1} of comparison {number}"
                        raise ScoreError(f"{label} has no score: {outcome.code}: {outcome.message}")
                    rewards.append(outcome)
                notes = [reward.notes or (("truncated",) if reward.truncated else ()) for reward in rewards]
                tokens = [(reward.n_tokens, reward.cut) for reward in rewards]
                yield NotedScores([reward.reward for reward in rewards], notes, tokens)
