"""What layers are handed during a pass, and their calls in the form that passes take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..tokenflow_ops.passes import AttentionCall, Pass, Place
from .validation.entrance import Entrance

# Keys of `transformer_options` during a pass: the pass, and what its layers need to know.
# Bandit takes passes for passwords.
PASS_KEY, HANDOVER_KEY = "tokenflow_pass", "tokenflow_handover"  # nosec B105


@dataclass
class Handover:
    """What a pass hands to the layers, and what they leave to each other while it runs.

    Attributes:
        work: The pass.
        node: The node's name, for errors.
        places: By uuid the place of each conditioning of the pass: which list, and which
            entry of it.
        entrance: Checks what comes to the model.
        seen: The layers that have run so far, by the uuids of a call of the model; of families
            that ask for it.
        between: What a layer leaves to a later one, by the same uuids.
    """

    work: Pass
    node: str
    places: Mapping[Any, Place]
    entrance: Entrance
    seen: dict[tuple[Any, ...], set[str]] = field(default_factory=dict)
    between: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Handover | None:
        """Returns what a running call has in its `transformer_options`; None outside our passes."""
        found: Handover | None = options.get(HANDOVER_KEY)
        return found

    def given(self) -> dict[str, Any]:
        """Returns the entries for `transformer_options`."""
        return {PASS_KEY: self.work, HANDOVER_KEY: self}

    def of_batch(self, options: Mapping[str, Any]) -> list[Place]:
        """Returns the places of a batch's conditionings, in the batch's order.

        The host puts batches together by free memory.
        """
        return [self.places[uuid] for uuid in options["uuids"]]


# The transformer_options of the model's running call, which ResBlocks and the like are not given.
# The host may run several at once, each in a thread of its own.
_running: ContextVar[Mapping[str, Any]] = ContextVar("running", default=MappingProxyType({}))


def running_options() -> Mapping[str, Any]:
    """Returns the `transformer_options` of the call that runs here; empty outside any call."""
    return _running.get()


@contextmanager
def running(options: Mapping[str, Any]) -> Iterator[None]:
    """Makes `options` those of the model's running call, as long as the context lasts."""
    before = _running.set(options)
    try:
        yield
    finally:
        _running.reset(before)


@dataclass
class HostAttention(AttentionCall):
    """One call of an attention module of the host.

    Attributes:
        original: The module's forward as it was.
        mask: The host's attention mask, or None.
        options: The host's `transformer_options`.
    """

    original: Callable[..., Tensor]
    mask: Tensor | None
    options: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, int]:
        _, _, height, width = self.options["activations_shape"]
        return height, width

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        """Runs the module as it is on other tokens.

        Args:
            x: Tokens to project to queries, (rows * n, P, C).
            context: Tokens to project to keys, (rows * n, P', C'), or None for `x`.
            value: Tokens to project to values, or None for those of the keys.

        Returns:
            Output tokens, (rows * n, P, C).
        """
        return self.original(
            x, context=context, value=value, mask=self.mask, transformer_options=self.options
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends by the host's attention backend, before the output projection.

        Args:
            q: Projected queries, (b, P, C).
            k: Projected keys, (b, P', C).
            v: Projected values, (b, P', C).

        Returns:
            (b, P, C).
        """
        module = self.module
        # On newer hosts a checkpoint may choose the attention of single layers.
        own = getattr(module, "comfy_attention", None)
        out: Tensor = optimized_attention(
            q,
            k,
            v,
            module.heads,
            attn_precision=module.attn_precision,
            transformer_options=self.options,
            **({} if own is None else {"preferred_attention": own}),
        )
        return out

    def project_out(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.module.to_out(tokens)
        return out
