"""What passes between us and an HTTP server besides the work: whether a key can be sent, and what a server says when it does not
do what it was asked: why, and when to ask again."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx


def can_be_sent(key: str) -> bool:
    """Whether a header can hold a key. Whoever sends another quotes it in an error."""
    return key.isascii() and key.isprintable() and " " not in key


def message_of(reply: httpx.Response) -> str | None:
    """The server's own words: OpenAI, vLLM, SGLang and ours put them in ``error.message``, others beside it or in ``detail``."""
    try:
        content = json.loads(reply.content)
        error = content.get("error", content)
        text = error if isinstance(error, str) else error.get("message") or error.get("detail")
    except (ValueError, AttributeError, RecursionError):
        return None
    return str(text) if text else None


def retry_after(reply: httpx.Response) -> float | None:
    """Seconds, from a header that holds seconds or a date; None where it is absent or neither."""
    value = reply.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
