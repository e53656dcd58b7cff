"""The worker: one headless ComfyUI, and the jobs it runs one after the other.

Made an actor by `pool`.
"""

from __future__ import annotations

import os
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import tomllib
from filelock import FileLock

from launch.comfyui.client import ConnectionClosed, PromptError, Result, run_prompt
from launch.comfyui.server import Server
from launch.comfyui.workflow import Json, Prompt
from launch.graphs.graph import title

from ..manifest import confined
from .events import About, Done, Saved, Step
from .watch import Watch

HOST_NODES = Path(__file__).resolve().parents[1] / "host_nodes"
FOLDERS, LOCK = "tokenflow-worker-", ".lock"
CHECKPOINTS = "tokenflow_checkpoints"  # as the pack calls the folder in ComfyUI's output folder
# In a row, before ComfyUI is started anew: a device may be in a state that no job gets it out of.
FAILURES = 3


class HostLost(RuntimeError):
    """ComfyUI has ended in the middle of a job; the message ends with the tail of its log."""


class Worker:
    """Starts ComfyUI in a folder of its own and runs prompts on it.

    Args:
        comfyui: The ComfyUI of where the run was started from, if COMFYUI_PATH of the worker's
            machine names none.
        threads: For the libraries that compute on the CPU.
    """

    def __init__(self, comfyui: Path, threads: int) -> None:
        self.comfyui = Path(os.environ.get("COMFYUI_PATH") or comfyui)
        remove_leftovers()
        self.folder = Path(tempfile.gettempdir(), f"{FOLDERS}{uuid.uuid4().hex}")
        self.lock = FileLock(self.folder.with_suffix(LOCK), thread_local=False)
        # Before there is anything that another worker could take for a leftover.
        self.lock.acquire()
        self.folder.mkdir(mode=0o700)
        # For the server, which inherits them.
        os.environ |= {
            "WORKER_PID": str(os.getpid()),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        self.server: Server | None = None
        self.failures = 0

    def start(self) -> About:
        """Starts ComfyUI unless it runs. Raises launch.comfyui.server.ServerError."""
        began = time.monotonic()
        if not self._is_running():
            packs = self.folder / "packs.yaml"
            packs.write_text(f"worker:\n    custom_nodes: {HOST_NODES}\n")
            options = ("--extra-model-paths-config", str(packs))
            output, log = self.folder / "output", self.folder / "server.log"
            self._link_checkpoints(output)
            self.server = Server(self.comfyui, self.folder, output, log, options=options)
            self.server.__enter__()
            self.failures = 0
        said = self._server().get("/system_stats")
        system, devices = said["system"], said["devices"]
        versions = {
            "tokenflow": pack_version(self.comfyui),
            "comfyui": system["comfyui_version"],
            "torch": system["pytorch_version"],
        }
        versions |= {"ray": version("ray"), "python": sys.version.split()[0]}
        return About(platform.node(), devices[0]["name"], versions, time.monotonic() - began)

    def _link_checkpoints(self, output: Path) -> None:
        """Lets checkpoints outlive this worker: the next one on this machine goes on with them."""
        kept, link = self.comfyui / "output" / CHECKPOINTS, output / CHECKPOINTS
        kept.mkdir(parents=True, exist_ok=True)
        output.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(kept)

    def stop(self) -> None:
        """Ends ComfyUI, also in the middle of a job, and removes what it left."""
        if self.server:
            self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()
        remove_leftovers()

    def object_info(self) -> Json:
        """Asks the server for its node definitions."""
        found: Json = self._server().get("/object_info")
        return found

    def run(
        self, name: str, prompt: Prompt, files: Mapping[str, Any]
    ) -> Iterator[Step | Saved | Done]:
        """Runs a prompt.

        Args:
            name: Of the job, whose nodes save below that folder.
            prompt: The API prompt.
            files: References to the contents of the files that nodes load, by name.

        Yields:
            Its steps, its files, and at last its figures.

        Raises:
            launch.comfyui.client.PromptError: For what a node or the host says.
            HostLost: If ComfyUI has ended in the middle of the job.
            launch.comfyui.server.ServerError: If ComfyUI does not start.
        """
        if self.failures >= FAILURES:
            self._server().stop()
        self.start()
        self.failures += 1  # until the job ends well
        self._take(files)
        watch = Watch(psutil.Process(self._process().pid), prompt)
        events: queue.SimpleQueue[Step | Result | Exception] = queue.SimpleQueue()

        def follow() -> None:
            try:
                events.put(
                    run_prompt(
                        self._server().address,
                        prompt,
                        lambda kind, data: watch.hear(kind, data, events.put),
                    )
                )
            except Exception as error:
                events.put(error)

        threading.Thread(target=follow, daemon=True).start()
        while isinstance(event := events.get(), Step):
            yield event
        if isinstance(event, Exception):
            raise self._told(event)
        self.failures = 0
        yield from self._saved(name, event)
        yield Done(
            {title(prompt, node): texts for node, texts in event.texts().items() if node in prompt},
            watch.figures(event.cached),
        )

    def _take(self, files: Mapping[str, Any]) -> None:
        """Fetches the files that are not there yet, and removes those of former clips."""
        import ray

        folder = self._server().input
        for path in folder.iterdir():
            if path.is_file() and path.name not in files:
                path.unlink()
        for name, content in files.items():
            path = confined(folder, name)
            if not path.exists():
                path.write_bytes(ray.get(content))
                # Names are made of contents: checkpoints are to know the file again.
                os.utime(path, (0, 0))

    def _saved(self, name: str, result: Result) -> Iterator[Saved]:
        """The files that nodes saved.

        The job's folder is removed; what lies elsewhere a cached node may give to a later job too.
        """
        output = self._server().output
        for file in result.files():
            yield Saved(file.removeprefix(f"{name}/"), confined(output, file).read_bytes())
        shutil.rmtree(output / name, ignore_errors=True)

    def _told(self, error: Exception) -> Exception:
        """What to say of a job that did not end well."""
        answered = isinstance(error, PromptError) and not isinstance(error, ConnectionClosed)
        if not answered:
            # The connection to a server that ends is closed first; on a busy machine it takes a
            # while until all its memory is given back.
            with suppress(subprocess.TimeoutExpired):
                self._process().wait(20)
        if not self._is_running():
            code = self._process().returncode
            return HostLost(
                f"ComfyUI ended with exit code {code} in the middle of the job. "
                f"Its log ends with:\n{self._server().tail()}"
            )
        return (
            error
            if isinstance(error, PromptError)
            else PromptError(f"{type(error).__name__}: {error}")
        )

    def _is_running(self) -> bool:
        return self.server is not None and self._process().poll() is None

    def _server(self) -> Server:
        assert self.server is not None
        return self.server

    def _process(self) -> subprocess.Popen[bytes]:
        process = self._server().process
        assert process is not None
        return process


def remove_leftovers() -> None:
    """Removes the folders of workers that were killed: a lock goes with its process."""
    for lock in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*{LOCK}"):
        # A lock that is held is an OSError too.
        with suppress(OSError), FileLock(lock).acquire(timeout=0):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()


def pack_version(comfyui: Path) -> str:
    """Reads the version of the pack that a ComfyUI has, "none" without one."""
    for path in (comfyui / "custom_nodes").glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text()).get("project", {})
        if project.get("name") == "tokenflow":
            return str(project.get("version"))
    return "none"
