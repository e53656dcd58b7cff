"""One call of a transformer's block: its arguments, its tokens, and the attention that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...tokenflow_ops.passes import DeepCall
from ..calls import Handover
from ..validation.errors import NodeError
from .joint_attention import JointAttention


@dataclass(frozen=True)
class Layout:
    """How blocks of one class are called.

    Attributes:
        image: The argument with the image's tokens, by name and position.
        text: The argument with the text's; None if the image's come behind the text's in one.
        returns: What a block returns, in order: "image" (or both in one), "text".
    """

    image: tuple[str, int]
    text: tuple[str, int] | None
    returns: tuple[str, ...]


@dataclass
class Block:
    """One call of a block.

    Attributes:
        path: The block's path.
        layers: Names of its attention, in the order it runs them.
        first: The number of the first of them among all of the model.
        layout: How blocks of its class are called.
        now: The pass, and what its layers need to know.
        options: The host's `transformer_options`.
        call: The block's forward as it was, with all its arguments.
        args: These, by position.
        kwargs: These, by name.
        grid: Rows and columns of a frame's image tokens.
        padding: Tokens behind them.
        ran: How many of `layers` have run.
    """

    path: str
    layers: tuple[str, ...]
    first: int
    layout: Layout
    now: Handover
    options: Mapping[str, Any]
    call: Callable[[], Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grid: tuple[int, int]
    padding: int
    ran: int = 0

    @property
    def tokens(self) -> int:
        """Image tokens of a frame."""
        return self.grid[0] * self.grid[1]

    def argument(self, where: tuple[str, int]) -> Tensor:
        """Returns an argument of the block's call."""
        name, position = where
        found: Tensor = self.kwargs[name] if name in self.kwargs else self.args[position]
        return found

    @property
    def image(self) -> Tensor:
        """The tokens that hold the image's, (rows * n, T, C)."""
        return self.argument(self.layout.image)

    def span(self, length: int) -> slice:
        """Finds a frame's image tokens in a sequence that ends with them and their padding.

        Args:
            length: Of the sequence.

        Returns:
            Their place in it.

        Raises:
            NodeError: If there are other tokens than the frame's: reference images.
        """
        behind = self.tokens + self.padding
        if self.layout.text is not None and self.image.shape[1] != behind:
            raise NodeError(
                self.now.node,
                "model",
                f"{self.path} gets {self.image.shape[1]} image tokens and a frame has {behind}: "
                "the prompt has reference images, or a patch merges tokens.",
                "Use a prompt without reference latents, and the model without such a patch.",
            )
        return slice(length - behind, length - self.padding)

    def run(self) -> Any:
        """Runs the block, with its attention going through the pass.

        Returns:
            What the block returns.

        Raises:
            NodeError: If the block did not attend in a way that can be seen.
        """
        before = _running.set(self)
        try:
            out = self.call()
        finally:
            _running.reset(before)
        if self.ran != len(self.layers):
            raise NodeError(
                self.now.node,
                "model",
                f"{self.path} attended {self.ran} times where {len(self.layers)} are expected.",
                "Remove the patch that replaces its attention, or update this pack for a newer "
                "ComfyUI.",
            )
        return out

    def remember(self) -> None:
        """Keeps the image's tokens as they are before the inner blocks, which may add in place."""
        image = self.image
        self.now.between[tuple(self.options["uuids"])] = image[:, self.span(image.shape[1])].clone()

    def before(self) -> Tensor:
        """Takes what `remember` kept."""
        return self.now.between.pop(tuple(self.options["uuids"]))

    def returned(self, image: Tensor) -> Any:
        """Puts together what the block returns: the given image tokens, and the text as it came."""
        text = None if self.layout.text is None else self.argument(self.layout.text)
        found = tuple(image if what == "image" else text for what in self.layout.returns)
        return found if len(found) > 1 else found[0]

    def image_of(self, output: Any) -> Tensor:
        """Picks a frame's image tokens from what the block has returned, (rows * n, P, C)."""
        found: Tensor = (
            output[self.layout.returns.index("image")] if isinstance(output, tuple) else output
        )
        return found[:, self.span(found.shape[1])]


_running: ContextVar[Block | None] = ContextVar("running_block", default=None)


def attention_override(theirs: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """Makes the host's `optimized_attention_override`.

    Args:
        theirs: What was there already.

    Returns:
        A function that is called with (attention function, *its arguments).
    """

    def override(
        function: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        attend = function if theirs is None else partial(theirs, function)
        block = _running.get()
        if block is None:
            return attend(q, k, v, heads, mask, *args, **kwargs)
        split = bool(kwargs.pop("skip_reshape", False))
        joined = bool(kwargs.pop("skip_output_reshape", False))
        q, k, v = (_flat(part, split) for part in (q, k, v))
        place = block.span(q.shape[1])
        ran = min(block.ran, len(block.layers) - 1)
        block.ran += 1
        call = JointAttention(
            block.layers[ran],
            None,
            q[:, place],
            k[:, place],
            v[:, place],
            block.now.of_batch(block.options),
            lambda q, k, v, mask: attend(q, k, v, heads, mask, *args, **kwargs),
            (q, k, v),
            place,
            mask,
            block.grid,
            block.first + ran,
        )
        out = call.whole(block.now.work.attention(call))
        return out.unflatten(-1, (heads, -1)).transpose(1, 2) if joined else out

    return override


def _flat(part: Tensor, split: bool) -> Tensor:
    """(rows, T, C) of queries, keys or values that may be split into heads."""
    if split:
        return part.transpose(1, 2).flatten(2)
    return part.flatten(2)


@dataclass
class DeepBlock(DeepCall):
    """One call of an inner block.

    What frames take from keyframes is what all inner blocks together add to the image's tokens:
    what goes around them, the transformer's residual stream, is every frame's own.

    Attributes:
        block: The block's call.
    """

    block: Block

    @property
    def device(self) -> torch.device:
        return self.block.image.device

    def run(self) -> Any:
        return self.block.run()

    def nothing(self) -> Any:
        """Hands on what came in."""
        return self.block.returned(self.block.image)

    def carried(self, output: Any) -> Tensor:
        added = self.block.image_of(output) - self.block.before()
        return added.transpose(1, 2).unflatten(2, self.block.grid)

    def resume(self, carried: Tensor) -> Any:
        image = self.block.image.clone()
        image[:, self.block.span(image.shape[1])] += carried.flatten(2).transpose(1, 2)
        return self.block.returned(image)
