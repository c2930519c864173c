"""The optional packages of a run, looked for before torch is loaded."""

from __future__ import annotations

from polar_rm.common.extras import require
from polar_rm.rft.config import RftConfig


def require_packages(config: RftConfig) -> None:
    """Check for the packages of training and report; judges check for theirs when they are opened.

    Raises:
        PolarError: one is missing; the message names the command that installs all that are.
    """
    for package in ("trl", "datasets"):
        require("rft", "polar rft", package)
    for package in ("matplotlib", "jinja2", "sklearn"):
        require("rft", "the report of polar rft", package)
    if config.lora:
        require("rft", "lora", "peft")
