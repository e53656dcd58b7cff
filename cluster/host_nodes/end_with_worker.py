"""Ends the server when the worker is gone, however it went.

Loaded by a worker's ComfyUI as a custom node.
"""

import os
import threading
from contextlib import suppress

import psutil

NODE_CLASS_MAPPINGS: dict[str, type] = {}


def _end_with(worker: int) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(worker).wait()
    os._exit(1)


threading.Thread(target=_end_with, args=(int(os.environ["WORKER_PID"]),), daemon=True).start()
