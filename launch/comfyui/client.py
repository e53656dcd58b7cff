"""Queues a prompt on a running server and follows it over the websocket."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

import aiohttp

from .workflow import Prompt


class PromptError(RuntimeError):
    """The server refused the prompt or a node failed; the message names the nodes."""


class ConnectionClosed(PromptError):
    """The server went away before the prompt had ended."""


@dataclass(frozen=True)
class Result:
    """What a prompt left behind.

    Attributes:
        prompt_id: The server's id of the prompt.
        outputs: {node id: what the node shows}.
        cached: Ids of the nodes that did not run again.
    """

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    cached: frozenset[str]

    def texts(self) -> dict[str, list[str]]:
        """Returns {node id: its text outputs} of the nodes that say anything."""
        found = {
            node: [t for t in shown.get("text", []) if isinstance(t, str) and t.strip()]
            for node, shown in self.outputs.items()
        }
        return {node: texts for node, texts in found.items() if texts}

    def files(self) -> list[str]:
        """Lists the files saved into the output folder, relative to it, each once."""
        entries = [
            e
            for shown in self.outputs.values()
            for items in shown.values()
            if isinstance(items, list)
            for e in items
        ]
        saved = [
            e
            for e in entries
            if isinstance(e, dict) and e.get("type") == "output" and "filename" in e
        ]
        return list(
            dict.fromkeys(f"{e.get('subfolder', '')}/{e['filename']}".lstrip("/") for e in saved)
        )


Listener = Callable[[str, dict[str, Any]], None]


def silent(kind: str, data: dict[str, Any]) -> None:
    """Does nothing, as a listener.

    Args:
        kind: The type of a message.
        data: What the message says.
    """


def run_prompt(
    address: str,
    prompt: Prompt,
    listener: Listener = silent,
    workflow: dict[str, Any] | None = None,
) -> Result:
    """Runs a prompt to its end.

    Args:
        address: The server's, http://host:port.
        prompt: The API prompt.
        listener: Gets (type, data) of every message about it.
        workflow: As the editor saves it, to be embedded in saved files.

    Returns:
        What the prompt left behind.

    Raises:
        PromptError: If the server refuses the prompt, a node fails, or the prompt is interrupted.
    """
    return asyncio.run(_run_prompt(address, prompt, listener, workflow))


async def _run_prompt(
    address: str, prompt: Prompt, listener: Listener, workflow: dict[str, Any] | None
) -> Result:
    client_id = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession(address) as session,
        session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket,
    ):
        body = {
            "prompt": prompt,
            "client_id": client_id,
            "extra_data": {"extra_pnginfo": {"workflow": workflow}} if workflow else {},
        }
        async with session.post("/prompt", json=body) as response:
            answer = await response.json()
        if response.status != 200 or answer.get("node_errors"):
            raise PromptError(refusal(answer, prompt))
        prompt_id: str = answer["prompt_id"]
        cached = await _follow(socket, prompt_id, prompt, listener)
        outputs = await _outputs(session, prompt_id)
    return Result(prompt_id, outputs, cached)


async def _outputs(session: aiohttp.ClientSession, prompt_id: str) -> dict[str, dict[str, Any]]:
    """A finished prompt's outputs. The server reports success a moment before it files them."""
    while True:
        async with session.get(f"/history/{prompt_id}") as response:
            history = await response.json()
        if prompt_id in history:
            outputs: dict[str, dict[str, Any]] = history[prompt_id]["outputs"]
            return outputs
        await asyncio.sleep(0.05)


async def _follow(
    socket: aiohttp.ClientWebSocketResponse, prompt_id: str, prompt: Prompt, listener: Listener
) -> frozenset[str]:
    """Passes the prompt's messages on until it ends well; returns the ids of cached nodes."""
    cached: frozenset[str] = frozenset()
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue  # a preview picture
        event = json.loads(message.data)
        kind, data = event["type"], event["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        listener(kind, data)
        if kind == "execution_cached":
            cached |= frozenset(data["nodes"])
        elif kind == "execution_error":
            message = data["exception_message"].strip()
            raise PromptError(
                f"{node_name(data['node_id'], prompt)}: {data['exception_type']}: {message}"
            )
        elif kind == "execution_interrupted":
            raise PromptError(f"{node_name(data['node_id'], prompt)}: interrupted")
        elif kind == "execution_success":
            return cached
    raise ConnectionClosed("the server closed the connection before the prompt had ended")


def refusal(answer: dict[str, Any], prompt: Prompt) -> str:
    """Puts into words why the server does not take a prompt, or a part of it.

    Args:
        answer: The server's answer.
        prompt: The prompt, for the names of its nodes.

    Returns:
        The reasons, one a line.
    """
    lines = []
    for node, report in answer.get("node_errors", {}).items():
        lines += [
            f"{node_name(node, prompt)}: {e['type']}: {e['message']}: {e['details']}"
            for e in report["errors"]
        ]
    general = answer.get("error")
    if not lines and general:
        lines = [
            f"{general['type']}: {general['message']} {general['details']}"
            if isinstance(general, dict)
            else str(general)
        ]
    return "\n".join(["the server refused the prompt", *lines])


def node_name(node: str, prompt: Prompt) -> str:
    """Names a node for messages.

    Args:
        node: Its id.
        prompt: The prompt, which need not have it.

    Returns:
        Id, title and type.
    """
    if node not in prompt:
        return f"node {node}"
    kind = prompt[node]["class_type"]
    title = prompt[node].get("_meta", {}).get("title", kind)
    return f"node {node} ({title}, {kind})" if title != kind else f"node {node} ({kind})"


class Progress:
    """A listener that prints one line per node.

    It has the node's title, step i/n while it runs, seconds when it is done.
    """

    def __init__(self, prompt: Prompt, stream: TextIO = sys.stdout) -> None:
        self.prompt, self.stream = prompt, stream
        self.live = stream.isatty()
        self.node: str | None = None
        self.start = 0.0

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing":
            self._finish()
            self.node, self.start = data["node"], time.monotonic()
            self._show("")
        elif kind == "progress" and data.get("node") == self.node and data["max"] > 1:
            self._show(f"{data['value']:g}/{data['max']:g}")
        elif kind in ("execution_success", "execution_error", "execution_interrupted"):
            self._finish("" if kind == "execution_success" else "failed")

    def _show(self, step: str) -> None:
        if self.live and self.node is not None:
            seconds = time.monotonic() - self.start
            self.stream.write(f"\r\033[K  {self._title()}  {step}  {seconds:.0f} s")
            self.stream.flush()

    def _finish(self, remark: str = "") -> None:
        if self.node is not None:
            clear = "\r\033[K" if self.live else ""
            seconds = time.monotonic() - self.start
            line = f"{clear}  {self._title()}  {seconds:.1f} s  {remark}"
            self.stream.write(line.rstrip() + "\n")
            self.stream.flush()
        self.node = None

    def _title(self) -> str:
        entry = self.prompt.get(self.node or "")
        return entry["_meta"]["title"] if entry and "_meta" in entry else f"node {self.node}"
