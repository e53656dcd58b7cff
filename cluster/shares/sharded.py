"""Workers that share every clip: one that the pool knows, and others that are its own."""

from __future__ import annotations

import json
import os
import threading
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from launch.comfyui.workflow import Prompt

from ..workers.events import About, Done, Saved, Step
from ..workers.worker import HostLost, Worker
from .board import Board

AGAIN = 0.5  # seconds between two interrupts


class Sharer(Worker):
    """A worker whose ComfyUI shares clips with others'."""

    def begin(self, place: Mapping[str, Any]) -> About:
        """Starts ComfyUI anew, at a place among the others: see `host_nodes/share_clips.py`."""
        if self.server:
            self.server.stop()
        os.environ["TOKENFLOW_SHARD"] = json.dumps(dict(place))  # for the server, which inherits it
        return super().start()

    def follow(self, name: str, prompt: Prompt, files: Mapping[str, Any]) -> None:
        """Runs a prompt whose results are the first host's to give.

        Args:
            name: Of the job, whose nodes save below that folder.
            prompt: The API prompt.
            files: References to the contents of the files that nodes load, by name.

        Raises:
            HostLost: If ComfyUI has ended, which is not for it to start.
            PromptError: For what a node or the host says.
        """
        if not self._is_running():
            raise HostLost("another host's ComfyUI has ended between two jobs")
        try:
            for _ in self.run(name, prompt, files):
                pass
        except ConnectionError as error:  # one that was killed just now may still look as if it ran
            raise HostLost("another host's ComfyUI has ended between two jobs") from error


class Sharded(Sharer):
    """The first of several workers that share every clip; the others end with it.

    They have to know and not know the same things of former jobs: where one fails, all begin anew.

    Args:
        comfyui: As of `Worker`.
        threads: As of `Worker`.
        hosts: How many workers share a clip, this one among them.
        resources: With which the others are asked of Ray.
    """

    def __init__(
        self, comfyui: Path, threads: int, hosts: int, resources: Mapping[str, float]
    ) -> None:
        super().__init__(comfyui, threads)
        self.hosts = hosts
        sharer: Any = ray.remote(Sharer)
        self.make_other = lambda: sharer.options(**resources).remote(comfyui, threads)
        self.others: list[ActorHandle] = []
        self.board: Any = None
        self.about: About | None = None

    def start(self) -> About:
        if self.about is None or not self._is_running():
            self._end_others()
            name = f"board {uuid.uuid4().hex}"
            self.board = ray.remote(Board).options(name=name, num_cpus=0).remote(self.hosts)
            ray.get(self.board.figures.remote())  # it is there
            context = ray.get_runtime_context()
            place = {
                "address": context.gcs_address,
                "namespace": context.namespace,
                "board": name,
                "count": self.hosts,
            }
            self.others = [self.make_other() for _ in range(1, self.hosts)]
            beginning = [
                other.begin.remote({**place, "rank": rank})
                for rank, other in enumerate(self.others, 1)
            ]
            about = self.begin({**place, "rank": 0})
            abouts = [about, *ray.get(beginning)]
            self.about = replace(about, device=" + ".join(one.device for one in abouts))
        return self.about

    def run(
        self, name: str, prompt: Prompt, files: Mapping[str, Any]
    ) -> Iterator[Step | Saved | Done]:
        """Runs a prompt as a worker alone does.

        Args:
            name: Of the job, whose nodes save below that folder.
            prompt: The API prompt.
            files: References to the contents of the files that nodes load, by name.

        Yields:
            The events of `Worker.run`; the last one says what sharing has cost every host.

        Raises:
            HostLost: If a ComfyUI has ended.
            PromptError: For what a node or a host says.
        """
        self.start()
        following = [other.follow.remote(name, prompt, files) for other in self.others]
        lost: list[Exception] = []
        ended = threading.Event()
        watching = threading.Thread(target=self._watch, args=(following, lost, ended), daemon=True)
        watching.start()
        try:
            for event in super().run(name, prompt, files):
                if isinstance(event, Done):
                    watching.join()
                    ray.get(following)
                    shared = {
                        str(host): asdict(figures)
                        for host, figures in ray.get(self.board.figures.remote()).items()
                    }
                    event = replace(event, figures={**event.figures, "shared": shared})
                yield event
        except Exception as error:
            first = lost[0] if lost else error  # before the others end, which is no news
            self.about = None  # all begin anew
            self._end_others()
            raise first from None
        finally:
            ended.set()

    def _watch(self, following: list[Any], lost: list[Exception], ended: threading.Event) -> None:
        """Interrupts the first host when another one fails, until it has ended.

        It would wait for ever, and may only be about to begin.
        """
        while following:
            done, following = ray.wait(following)
            try:
                ray.get(done)
            except (RayActorError, RayTaskError) as error:
                lost.append(
                    error.cause
                    if isinstance(error, RayTaskError)
                    else HostLost(f"another host was lost: {error}")
                )
                interrupt = urllib.request.Request(
                    f"{self._server().address}/interrupt", method="POST"
                )
                while not ended.wait(AGAIN):
                    with suppress(OSError):  # it may have ended as well
                        urllib.request.urlopen(interrupt, timeout=60).close()
                return

    def stop(self) -> None:
        self._end_others()
        super().stop()

    def _end_others(self) -> None:
        for actor in [*self.others, *([self.board] if self.board else [])]:
            ray.kill(actor)
        self.others, self.board = [], None
