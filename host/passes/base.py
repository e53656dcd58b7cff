"""What happens in the UNet's self-attention and ResBlocks during one pass over some of the frames.

A pass travels in `transformer_options`; the wrapped forwards ask it. Rows of a batch are conditionings times frames, conditionings first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..conds import Place
from ..conflicts import check_same_tokens
from ..entrance import Entrance

PASS_KEY = "tokenflow_pass"  # nosec B105 (bandit takes passes for passwords)

# What a keyframe pass leaves for the frames, by layer and conditioning: tokens (k, P, C) of each keyframe, on the device where they were
# made. The host may run a conditioning on another one in the next pass (MultiGPU CFG Split), so whoever reads a bank moves what it takes.
# DEEP: (k, C, h, w) instead, from the last layer below the UNet's full resolution.
DEEP = "deep"
Bank = dict[tuple[str, Place], Any]
T = TypeVar("T")


@dataclass
class AttentionCall:
    """One call of an attention module.

    original: the module's forward as it was. x: (rows * n, P, C). context, value: None or like x. options: the host's transformer_options.
    """

    layer: str
    module: Any
    original: Callable[..., Tensor]
    x: Tensor
    context: Tensor | None
    value: Tensor | None
    mask: Tensor | None
    options: Mapping[str, Any]

    @property
    def key_tokens(self) -> Tensor:
        """The tokens that keys are projected from."""
        return self.x if self.context is None else self.context

    @property
    def value_tokens(self) -> Tensor:
        """The tokens that values are projected from."""
        return self.key_tokens if self.value is None else self.value

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        """The module's own attention and projections on other tokens."""
        return self.original(x, context=context, value=value, mask=self.mask, transformer_options=self.options)

    def run_injected(self, q_source: Tensor, k_source: Tensor, value: Tensor) -> Tensor:
        """The module with queries and keys projected from source features, through the host's attention backend."""
        module = self.module
        q, k, v = module.to_q(q_source), module.to_k(k_source), module.to_v(value)
        out = optimized_attention(q, k, v, module.heads, attn_precision=module.attn_precision, transformer_options=self.options)
        return module.to_out(out)

    def run_windows(self, q_from: Tensor, k_from: Tensor, v_from: Tensor, windows: Tensor) -> Tensor:
        """The module with every frame attending to some of the keyframes only.

        q_from: (rows, n, P, C), k_from and v_from: (rows, k, P, C) tokens to project. windows: (n, L) positions among the k.
        Returns: (rows * n, P, C).
        """
        module = self.module
        q, k, v = module.to_q(q_from), module.to_k(k_from), module.to_v(v_from)
        out = [
            optimized_attention(
                q[:, i],
                k[:, window].flatten(1, 2),
                v[:, window].flatten(1, 2),
                module.heads,
                attn_precision=module.attn_precision,
                transformer_options=self.options,
            )
            for i, window in enumerate(windows.tolist())
        ]
        return module.to_out(torch.stack(out, 1).flatten(0, 1))


@dataclass
class DeepCall:
    """One call of a layer below the UNet's full resolution.

    last: whether it is the last one, whose output (rows * n, C, h, w) is back at full resolution. x: its input. args, kwargs: the others.
    """

    path: str
    last: bool
    original: Callable[..., Tensor]
    x: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]

    def run(self) -> Tensor:
        """The layer as the host runs it."""
        return self.original(self.x, *self.args, **self.kwargs)

    def nothing(self) -> Tensor:
        """An output without channels: the host joins it to others and takes its height and width for the way up, at no cost."""
        height, width = self.x.shape[2:]
        if self.kwargs.get("output_shape") is not None:
            height, width = self.kwargs["output_shape"][2:]
        elif not self.args:  # a Downsample; ResBlocks and transformers are given an embedding or a context
            height, width = -(-height // 2), -(-width // 2)
        return self.x.new_empty(len(self.x), 0, height, width)


@dataclass
class Pass:
    """A pass that changes nothing: frames that only have to be processed in smaller batches.

    frames: (n,) frame numbers. place: where each conditioning of the batch stands, by uuid.
    source: for injected layers the source's tokens (n, P, C) or hidden features (n, C, h, w); empty without injection.
    node: the node's name for errors, known when the pass runs, as is what it hands to the UNet, `entrance`.
    """

    frames: Tensor
    place: Mapping[Any, Place] = field(default_factory=dict)
    source: Mapping[str, Tensor] = field(default_factory=dict)
    node: str = ""
    entrance: Entrance | None = None

    @property
    def plain(self) -> bool:
        """Whether every layer runs as the host runs it."""
        return type(self) is Pass and not self.source

    def attention(self, call: AttentionCall) -> Tensor:
        """The module's output tokens (rows * n, P, C)."""
        if call.layer not in self.source:
            return call.run(call.x, call.context, call.value)
        source = self.source_rows(call.layer, call.x)
        return call.run_injected(source, source, call.value_tokens)

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """A cross-attention module's output tokens (rows * n, P, C); the context is the prompts' (rows * n, T, D)."""
        return call.run(call.x, call.context, call.value)

    def hidden(self, path: str, hidden: Tensor, options: Mapping[str, Any]) -> Tensor:
        """A ResBlock's residual branch (rows * n, C, h, w): the source's where it is injected."""
        return self.source_rows(path, hidden) if path in self.source else hidden

    @property
    def skips_deep(self) -> bool:
        """Whether nothing below the UNet's full resolution runs."""
        return False

    def deep(self, call: DeepCall) -> Tensor:
        """The output of a layer below the UNet's full resolution."""
        return call.run()

    def finish(self) -> None:
        """Called once the pass is through. One that fails is made again, with fewer frames."""

    def rows(self, tensor: Tensor) -> int:
        """How many conditionings the batch holds."""
        return tensor.shape[0] // len(self.frames)

    def source_rows(self, name: str, like: Tensor) -> Tensor:
        """The source's features, repeated for every conditioning of the batch, on the device and in the dtype of `like`."""
        source = self.source[name].to(like)
        check_same_tokens(self.node, name, like.shape[1:], source.shape[1:])
        return source.repeat(self.rows(like), *[1] * (source.ndim - 1))

    def places(self, options: Mapping[str, Any]) -> list[Place]:
        """The conditionings of the batch, in its order."""
        return [self.place[uuid] for uuid in options["uuids"]]


@dataclass
class CapturePass(Pass):
    """Records self-attention inputs phi_l and ResBlock features of the source on its way.

    Of several source prompts combined, the first one's are recorded.
    names: layers to record. device: where to keep them, None for where they are.
    """

    names: frozenset[str] = frozenset()
    device: torch.device | None = None
    _kept: dict[str, dict[Place, Tensor]] = field(default_factory=dict)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What was recorded: (n, P, C) or (n, C, h, w) by name."""
        return {name: first_of(found) for name, found in self._kept.items()}

    def attention(self, call: AttentionCall) -> Tensor:
        self.keep(call.layer, call.x, call.options)
        return super().attention(call)

    def hidden(self, path: str, hidden: Tensor, options: Mapping[str, Any]) -> Tensor:
        self.keep(path, hidden, options)
        return hidden

    def keep(self, name: str, tensor: Tensor, options: Mapping[str, Any]) -> None:
        """Records the batch's first conditioning's rows. The first of all may be in another one, which may run at the same time."""
        if name not in self.names:
            return
        place, row = min((place, row) for row, place in enumerate(self.places(options)))
        # A copy: the host's blocks work in place.
        own = tensor.chunk(self.rows(tensor))[row].to(self.device or tensor.device, copy=True)
        self._kept.setdefault(name, {})[place] = own


def first_of(found: Mapping[Place, T]) -> T:
    """What belongs to the first of several conditionings."""
    return found[min(found)]
