"""Messages about a reward server that does not answer."""

from __future__ import annotations

import logging
import time

# Seconds between two messages about a server that does not answer.
_REPORT_SECONDS = 30.0

_log = logging.getLogger("polar_rm.client")


class Outage:
    """Logs that a server does not answer: at the first failed attempt, and then twice a minute."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._started = self._reported = 0.0

    def failed(self, reason: str, until: float) -> None:
        """Record a failed attempt."""
        now = time.monotonic()
        self._started = self._started or now
        if not self._reported or now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            since = f" for {now - self._started:.0f} s" if now - self._started >= 1 else ""
            _log.warning("reward server %s: %s%s; trying for %.0f s more", self._url, reason, since, max(0.0, until - now))

    def answered(self) -> None:
        """Record an answer, which ends the outage."""
        if self._reported:
            _log.warning("reward server %s: answers again after %.0f s", self._url, time.monotonic() - self._started)
        self._started = self._reported = 0.0
