"""Worker processes that do not outlive whoever started them."""

from __future__ import annotations

import os
import threading
import time

_EVERY_S = 0.5


def die_with_parent(parent: int) -> None:
    """End this process soon after its parent has ended, however that came about; call it first in a worker.

    A thread looks who the parent is. The kernel's own means (``PR_SET_PDEATHSIG``) follows the parent's *thread* and would end
    workers of a pool that a short-lived thread has started. parent: the process id of whoever starts the worker, taken there: it
    may be gone before the worker looks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()
