"""A headless ComfyUI server as a context manager."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


class ServerError(RuntimeError):
    """The server did not start; the message ends with the tail of its log."""


def has_accelerator() -> bool:
    """Tells whether torch sees a device that ComfyUI can use.

    Without one it has to be started with --cpu.
    """
    import torch

    return (
        torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    )


def free_port() -> int:
    """Finds a TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """Runs a ComfyUI from entering to leaving the context.

    Attributes:
        comfyui: The folder of the ComfyUI.
        work: Gets the folders input, user and temp: nothing is written into ComfyUI's own.
        output: Gets what the nodes save.
        log: Gets all that the server prints.
        patience: Seconds within which it has to answer; else entering raises ServerError.
        port: The TCP port it listens on.
        options: Further ones of its command line.
        process: The server's process, once it is started.
    """

    comfyui: Path
    work: Path
    output: Path
    log: Path
    patience: float = 300.0
    port: int = field(default_factory=free_port)
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def address(self) -> str:
        """Root of the server's pages and API."""
        return f"http://{HOST}:{self.port}"

    @property
    def input(self) -> Path:
        """Where nodes find the files they load."""
        return self.work / "input"

    def __enter__(self) -> Server:
        for folder in (self.input, self.work / "user", self.output, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches only us, and we stop the server.
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.comfyui,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self) -> list[str]:
        """Makes the server's command line."""
        folders = {"--input-directory": self.input, "--output-directory": self.output}
        folders |= {"--user-directory": self.work / "user", "--temp-directory": self.work}
        options = [
            text for option, folder in folders.items() for text in (option, str(folder.absolute()))
        ]
        options += ["--database-url", "sqlite:///:memory:"]
        options += ["--disable-api-nodes", "--disable-auto-launch"]
        options += ["--preview-method", "auto"]  # the host's own choice is none
        # ComfyUI's own choice for a CPU is a slower attention than torch's.
        options += [] if has_accelerator() else ["--cpu", "--use-pytorch-cross-attention"]
        listen = ["--listen", HOST, "--port", str(self.port)]
        return [sys.executable, "main.py", *listen, *options, *self.options]

    def stop(self) -> None:
        """Ends the server process and waits for it; does nothing when it has ended."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def get(self, path: str) -> Any:
        """Fetches the JSON answer to a GET request, e.g. `get("/object_info")`."""
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return json.load(answer)

    def tail(self, lines: int = 30) -> str:
        """Reads the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ServerError(
                    f"ComfyUI ended with exit code {self.process.returncode}. "
                    f"{self.log} ends with:\n{self.tail()}"
                )
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise ServerError(
            f"ComfyUI does not answer after {self.patience:.0f} s. "
            f"{self.log} ends with:\n{self.tail()}"
        )
