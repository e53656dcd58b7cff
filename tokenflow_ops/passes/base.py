"""What happens in a model's attention and ResBlocks during one pass over some of the frames.

The adapters' wrapped layers ask the pass of the running call. Rows of a batch are conditionings
times frames, conditionings first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .calls import AttentionCall, DeepCall, FeatureMismatch, Place

# What a keyframe pass leaves for the frames, by layer and conditioning: tokens (k, P, C) of each
# keyframe, on the device where they were made. The next pass may run a conditioning on another one
# (MultiGPU CFG Split), so whoever reads a bank moves what it takes. DEEP: (k, C, h, w) instead,
# from the last layer below the model's full resolution.
DEEP = "deep"
Bank = dict[tuple[str, Place], Any]
T = TypeVar("T")


@dataclass
class Pass:
    """A pass that changes nothing: frames that only have to be processed in smaller batches.

    What a pass collects on its way (a bank, features) is its own: it makes it, and hands it out
    once it is through. A pass that fails is dropped and made again, with fewer frames.

    Attributes:
        frames: Frame numbers, (n,).
        source: For injected layers the source's tokens (n, P, C) or hidden features (n, C, h, w);
            empty without injection.
    """

    frames: Tensor
    source: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether every layer runs as the host runs it."""
        return type(self) is Pass and not self.source

    def attention(self, call: AttentionCall) -> Tensor:
        """Returns the module's output tokens (rows * n, P, C)."""
        sides = self.source_sides(call)
        if sides is None:
            return call.run(call.x, call.context, call.value)
        return call.run_injected(*sides, call.value_tokens)

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """Returns a cross-attention module's output tokens (rows * n, P, C).

        The context is the prompts', (rows * n, T, D).
        """
        return call.run(call.x, call.context, call.value)

    def hidden(self, path: str, hidden: Tensor, places: list[Place]) -> Tensor:
        """Returns a ResBlock's residual branch: the source's where it is injected.

        Args:
            path: The layer's.
            hidden: What the layer has made here, (rows * n, C, h, w).
            places: The conditionings of the batch, in its order.

        Returns:
            (rows * n, C, h, w).
        """
        return self.source_rows(path, hidden) if path in self.source else hidden

    @property
    def skips_deep(self) -> bool:
        """Whether nothing below the UNet's full resolution runs."""
        return False

    def deep(self, call: DeepCall) -> Any:
        """Returns the output of a deep layer."""
        return call.run()

    def rows(self, tensor: Tensor) -> int:
        """Returns how many conditionings the batch holds."""
        return tensor.shape[0] // len(self.frames)

    def source_sides(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """Returns what the call's queries and keys are made of, where they are the source's.

        Args:
            call: The call of an attention module.

        Returns:
            Two (rows * n, P, C), or None where nothing is injected.

        Raises:
            FeatureMismatch: If the source's features have another shape than the layer's here.
        """
        if call.injected not in self.source:
            return None
        rows = self.rows(call.x)
        sides = call.source_sides(self.source[call.injected].to(call.x))
        for side in sides:
            check_same_shape(call.layer, call.x.shape[1:], side.shape[1:])
        queries = sides[0].repeat(rows, 1, 1)
        return queries, queries if sides[1] is sides[0] else sides[1].repeat(rows, 1, 1)

    def source_rows(self, name: str, like: Tensor) -> Tensor:
        """Returns the source's features, repeated for every conditioning of the batch.

        Args:
            name: The layer's path.
            like: What the layer has here, (rows * n, ...).

        Returns:
            (rows * n, ...), on the device and in the dtype of `like`.

        Raises:
            FeatureMismatch: If the source's features have another shape than the layer's here.
        """
        source = self.source[name].to(like)
        check_same_shape(name, like.shape[1:], source.shape[1:])
        return source.repeat(self.rows(like), *[1] * (source.ndim - 1))


@dataclass
class CapturePass(Pass):
    """Records self-attention inputs phi_l and ResBlock features of the source on its way.

    Of several source prompts combined, the first one's are recorded.

    Attributes:
        names: Layers to record.
        device: Where to keep them, None for where they are.
    """

    names: frozenset[str] = frozenset()
    device: torch.device | None = None
    _kept: dict[str, dict[Place, Tensor]] = field(init=False, repr=False, default_factory=dict)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What was recorded: (n, P, C) or (n, C, h, w) by name."""
        return {name: first_of(found) for name, found in self._kept.items()}

    def attention(self, call: AttentionCall) -> Tensor:
        output = super().attention(call)
        for name, make in call.features(output).items():
            if name in self.names:
                self.keep(name, make(), call.places)
        return output

    def hidden(self, path: str, hidden: Tensor, places: list[Place]) -> Tensor:
        """Records a ResBlock's residual branch, and returns it.

        Args:
            path: The layer's.
            hidden: What the layer has made, (rows * n, C, h, w).
            places: The conditionings of the batch, in its order.

        Returns:
            `hidden` as it is.
        """
        self.keep(path, hidden, places)
        return hidden

    def keep(self, name: str, tensor: Tensor, places: list[Place]) -> None:
        """Records the rows of the batch's first conditioning.

        The first of all may be in another batch, which may run at the same time.

        Args:
            name: The layer's path; nothing is recorded if it is none of `names`.
            tensor: (rows * n, ...).
            places: The conditionings of the batch, in its order.
        """
        if name not in self.names:
            return
        place, row = min((place, row) for row, place in enumerate(places))
        # A copy: the host's blocks work in place.
        own = tensor.chunk(self.rows(tensor))[row].to(self.device or tensor.device, copy=True)
        self._kept.setdefault(name, {})[place] = own


def first_of(found: Mapping[Place, T]) -> T:
    """Returns what belongs to the first of several conditionings."""
    return found[min(found)]


def check_same_shape(
    name: str, here: torch.Size | tuple[int, ...], source: torch.Size | tuple[int, ...]
) -> None:
    """Checks that what a layer has here is of the same shape as in the source features.

    Args:
        name: The layer.
        here: Its shape here, frames left out.
        source: The source's, likewise.

    Raises:
        FeatureMismatch: If the shapes differ.
    """
    if tuple(here) != tuple(source):
        raise FeatureMismatch(name, tuple(here), tuple(source))
