"""Where hosts that share a clip leave what they have made for each other.

They leave references into Ray's object store.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

PATIENCE = 1.0  # seconds until a host that waits looks whether it is interrupted


@dataclass
class Figures:
    """What sharing has cost a host.

    Attributes:
        calls: Of `once` and `gather`.
        sent: Bytes put into the object store.
        waited: Seconds for others.
    """

    calls: int = 0
    sent: int = 0
    waited: float = 0.0


class Board:
    """An actor with which hosts leave references to what they have made, by call and host.

    They stay until all the others have taken them.
    """

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self.left: dict[tuple[int, int], tuple[list[Any], set[int]]] = {}
        self.known: dict[int, Figures] = {}
        self.changed = asyncio.Condition()

    async def leave(self, call: int, host: int, references: list[Any], figures: Figures) -> None:
        """Takes what a host has made at a call.

        Args:
            call: Number of the call.
            host: Rank of the host.
            references: One, in a list so that Ray does not look it up on the way.
            figures: What sharing has cost that host until now.
        """
        async with self.changed:
            self.left[call, host] = references, {host}
            self.known[host] = figures
            self.changed.notify_all()

    async def take(self, call: int, host: int, by: int) -> list[Any]:
        """Hands over what a host has left at a call.

        Args:
            call: Number of the call.
            host: Rank of the host that left it.
            by: Rank of the host that asks.

        Returns:
            The references; nothing if they have not come within PATIENCE.
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
        """Returns what sharing has cost, by host."""
        return self.known
