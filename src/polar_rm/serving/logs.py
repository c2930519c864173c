"""The server's log: one JSON object per line on stderr, bounded in size whatever clients do."""

from __future__ import annotations

import json
import logging
import time

_MAX_TRACEBACK = 8_000  # characters
# Maximum number of equal messages per period, because a log must not fill the disk.
_PERIOD_SECONDS = 10.0
_MAX_REPEATS = 5


class JsonLines(logging.Formatter):
    """One line per record, with its ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            if len(traceback) > _MAX_TRACEBACK:
                traceback = f"{traceback[: _MAX_TRACEBACK // 4]}\n...\n{traceback[-_MAX_TRACEBACK // 4 * 3 :]}"
            line["traceback"] = traceback
        return json.dumps(line, ensure_ascii=False)


class Repeats(logging.Filter):
    """Passes only a few warnings of one kind per period. The first warning of the next period counts the ones left out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno < logging.WARNING:
            return True
        kind = (record.name, record.levelno, str(record.msg))
        start, count = self._seen.get(kind, (record.created, 0))
        if record.created - start >= _PERIOD_SECONDS:
            if count > _MAX_REPEATS:
                record.fields = {**getattr(record, "fields", {}), "left_out": count - _MAX_REPEATS}
            start, count = record.created, 0
        if len(self._seen) >= 1000:  # unlikely: message formats come from programs, not from clients
            self._seen.clear()
        self._seen[kind] = start, count + 1
        return count < _MAX_REPEATS


def log_to_stderr() -> None:
    """Log our own messages, and the warnings of uvicorn and asyncio."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    handler.addFilter(Repeats())
    for name, level in (("polar_rm", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
