"""What travels to the model's layers during a pass, and their calls as passes are asked about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..tokenflow_ops.passes import AttentionCall, Pass, Place
from .validation.entrance import Entrance

# What travels in `transformer_options` during a pass: the pass, and what its layers need to know of
# it.
PASS_KEY, HANDOVER_KEY = "tokenflow_pass", "tokenflow_handover"  # nosec B105 (bandit takes passes for passwords)


@dataclass(frozen=True)
class Handover:
    """What a pass hands to the layers.

    work: the pass. node: the node's name for errors. places: where each conditioning of the pass
    stands, by uuid. entrance: looks over what comes to the model.
    """

    work: Pass
    node: str
    places: Mapping[Any, Place]
    entrance: Entrance

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Handover | None:
        """What a running call has in its transformer_options; None outside of our passes."""
        found: Handover | None = options.get(HANDOVER_KEY)
        return found

    def given(self) -> dict[str, Any]:
        """As transformer_options."""
        return {PASS_KEY: self.work, HANDOVER_KEY: self}

    def of_batch(self, options: Mapping[str, Any]) -> list[Place]:
        """The conditionings of a batch, which the host puts together by free memory, in its order."""
        return [self.places[uuid] for uuid in options["uuids"]]


# The transformer_options of the model's running call, which ResBlocks and the like are not given.
# The host may run several at once, each in a thread of its own.
_running: ContextVar[Mapping[str, Any]] = ContextVar("running", default=MappingProxyType({}))


def running_options() -> Mapping[str, Any]:
    """The transformer_options of the call that runs here; empty outside of any."""
    return _running.get()


@contextmanager
def running(options: Mapping[str, Any]) -> Iterator[None]:
    """Within, the model's call runs with these."""
    before = _running.set(options)
    try:
        yield
    finally:
        _running.reset(before)


@dataclass
class HostAttention(AttentionCall):
    """original: the module's forward as it was. options: the host's transformer_options."""

    original: Callable[..., Tensor]
    mask: Tensor | None
    options: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, int]:
        _, _, height, width = self.options["activations_shape"]
        return height, width

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        return self.original(
            x, context=context, value=value, mask=self.mask, transformer_options=self.options
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module = self.module
        out: Tensor = optimized_attention(
            q,
            k,
            v,
            module.heads,
            attn_precision=module.attn_precision,
            transformer_options=self.options,
        )
        return out

    def project_out(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.module.to_out(tokens)
        return out
