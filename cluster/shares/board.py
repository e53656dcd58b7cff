"""Where hosts that share a clip leave what they have made for each other: references into Ray's
object store.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

PATIENCE = 1.0  # seconds until a host that waits looks whether it is interrupted


@dataclass
class Figures:
    """What sharing has cost a host. calls: of `once` and `gather`. sent: bytes put into the object
    store. waited: seconds for others.
    """

    calls: int = 0
    sent: int = 0
    waited: float = 0.0


class Board:
    """An actor.

    Where hosts leave references to what they have made, by call and host, until all the others have
    taken them.
    """

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self.left: dict[tuple[int, int], tuple[list[Any], set[int]]] = {}
        self.known: dict[int, Figures] = {}
        self.changed = asyncio.Condition()

    async def leave(self, call: int, host: int, references: list[Any], figures: Figures) -> None:
        """references: one, in a list so that Ray does not look it up on the way."""
        async with self.changed:
            self.left[call, host] = references, {host}
            self.known[host] = figures
            self.changed.notify_all()

    async def take(self, call: int, host: int, by: int) -> list[Any]:
        """What `host` has left at a call, for the host `by`; nothing if it has not come within
        PATIENCE.
        """
        async with self.changed:
            try:
                await asyncio.wait_for(
                    self.changed.wait_for(lambda: (call, host) in self.left), PATIENCE
                )
            except asyncio.TimeoutError:
                return []
            references, taken = self.left[call, host]
            taken.add(by)
            if len(taken) == self.hosts:
                del self.left[call, host]
            return references

    def figures(self) -> dict[int, Figures]:
        """By host."""
        return self.known
