"""Servers in their own processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


class Process:
    """A Python process with these arguments; waits until the server is ready and sets ``url``. The log goes to a file, because a
    full pipe would stop the process."""

    def __init__(self, log, *arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen([sys.executable, *arguments], stderr=file, env=environment)
        until = time.monotonic() + 300
        while not (ready := [line for line in self.lines() if line["message"] == "ready"]):
            assert self.process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        self.url = ready[0]["url"]

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]


def serve(model, log):
    """Start ``polar serve`` on a free port."""
    return Process(log, "-m", "polar_rm", "serve", "--model", str(model), "--port", "0")
