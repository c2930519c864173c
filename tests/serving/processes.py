"""``polar serve`` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


class Process:
    """``polar serve`` on a free port; ``url`` once it is ready. Its log goes to a file: a full pipe would stop it."""

    def __init__(self, model, log):
        command = [sys.executable, "-m", "polar_rm", "serve", "--model", str(model), "--port", "0"]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
        until = time.monotonic() + 300
        while not (ready := [line for line in self.lines() if line["message"] == "ready"]):
            assert self.process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        self.url = ready[0]["url"]

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
