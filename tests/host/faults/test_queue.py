"""A second prompt queued while one runs, and the running one interrupted."""

from __future__ import annotations

import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from torch import Tensor

from launch.comfyui.client import PromptError
from launch.comfyui.server import Server

from .tools.served import edited


def test_the_next_in_the_queue_is_right_after_the_running_one_is_interrupted(
    server: Server,
) -> None:
    first, second = edited(server, 4.0), edited(server, 5.0)
    assert not first.equal(second)
    with ThreadPoolExecutor() as threads:
        queued: list[Future[Tensor]] = []

        def interrupt(kind: str, data: dict[str, Any]) -> None:
            if kind == "progress" and data["node"] == "edit" and not queued:
                queued.append(threads.submit(edited, server, 5.0))
                urllib.request.urlopen(
                    urllib.request.Request(f"{server.address}/interrupt", method="POST"), timeout=60
                ).close()

        with pytest.raises(PromptError, match="interrupted"):
            edited(server, 4.0, interrupt)
        assert queued[0].result(120).equal(second)
    assert edited(server, 4.0).equal(first)
