"""One call of a transformer's block, and of the attention in it, in the form that passes take.

A block attends over one sequence: the text's tokens and the image's, in an order of its own. Passes
see the image's alone. Their queries, keys and values come from the host projected, normed and
rotated, so what passes call tokens are these; all frames' image tokens have the same positions, and
keep them where they are joined or carried.

Text goes on attending to itself and to all the image tokens that its frame attends to. Beside the
image tokens of several frames it counts as many times as there are frames: else it would have the
less to say the more keyframes are edited together, and equal frames would not be edited as one of
them. Frames that attend to nothing, because they take what keyframes have found, need no text:
theirs is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...tokenflow_ops.passes import AttentionCall, DeepCall, beside
from ..calls import Handover
from ..validation.errors import NodeError

# Under which name, after the layer's, the source's queries and keys are known.
QUERIES_AND_KEYS = ".queries_and_keys"


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
        layer = block.layers[min(block.ran, len(block.layers) - 1)]
        block.ran += 1
        call = JointAttention(
            layer,
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
class JointAttention(AttentionCall):
    """One call of attention over text and image tokens.

    Its tokens, `x`, `context` and `value`, are the image's queries, keys and values.

    Attributes:
        function: The attention, of queries, keys, values (b, T, C) and a mask.
        whole_sides: Queries, keys and values of all tokens, (rows * n, T, C) each.
        place: The image's tokens among them.
        mask: The host's attention mask, or None.
        rows_columns: How the image's tokens lie.
        others: The output of the other tokens, (rows * n, T, C), as far as it is computed.
    """

    function: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    whole_sides: tuple[Tensor, Tensor, Tensor]
    place: slice
    mask: Tensor | None
    rows_columns: tuple[int, int]
    others: Tensor | None = field(default=None)

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows_columns

    @property
    def injected(self) -> str:
        return f"{self.layer}{QUERIES_AND_KEYS}"

    def features(self, output: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        """Lists what can be recorded: the output, and queries with keys for Plug-and-Play.

        Args:
            output: What the call has returned, (rows * n, P, C).

        Returns:
            By name what makes it, (rows * n, P, C').
        """
        return {
            self.layer: lambda: output,
            self.injected: lambda: torch.cat([self.x, self.key_tokens], -1),
        }

    def source_sides(self, source: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = source.chunk(2, -1)
        return queries, keys

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        """Attends with other image tokens, every frame's beside its own text.

        Args:
            x: Queries, (rows, m * P, C): of m frames joined.
            context: Keys of any frames' tokens, (rows, K, C), or None for the call's own.
            value: Their values, or None for the call's own.

        Returns:
            The image's output, (rows, m * P, C).
        """
        keys = self.key_tokens if context is None else context
        values = self.value_tokens if value is None else value
        size = self.x.shape[1]
        frames = x.shape[1] // size
        parts = [
            self._of_frame(queries, keys, values, slice(i, None, frames))
            for i, queries in enumerate(x.split(size, 1))
        ]
        return parts[0] if frames == 1 else torch.cat(parts, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Runs the module: what passes hand over is projected already.

        Args:
            q: Queries, (b, P, C).
            k: Keys, (b, K, C).
            v: Values, (b, K, C).

        Returns:
            (b, P, C).
        """
        return self.run(q, k, v)

    def run_injected(self, q_source: Tensor, k_source: Tensor, value: Tensor) -> Tensor:
        """Runs the module: the source's queries and keys are projected already, too.

        Args:
            q_source: Queries, (b, P, C).
            k_source: Keys, (b, K, C).
            value: Values, (b, K, C).

        Returns:
            (b, P, C).
        """
        return self.run(q_source, k_source, value)

    def run_windows(
        self, q_from: Tensor, k_from: Tensor, v_from: Tensor, windows: Tensor
    ) -> Tensor:
        """Attends with every frame looking at some of the keyframes only.

        Args:
            q_from: Queries, (rows, n, P, C).
            k_from: Keys, (rows, k, P, C).
            v_from: Values, (rows, k, P, C).
            windows: Positions among the k, (n, L).

        Returns:
            (rows * n, P, C).
        """
        out = [
            self._of_frame(
                q_from[:, i],
                k_from[:, window].flatten(1, 2),
                v_from[:, window].flatten(1, 2),
                slice(i, None, len(windows)),
            )
            for i, window in enumerate(windows.tolist())
        ]
        return torch.stack(out, 1).flatten(0, 1)

    def run_beside(
        self, sides: tuple[Tensor, Tensor, Tensor], others: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Attends with every frame looking at its own tokens and at fewer of all others'.

        Args:
            sides: Queries, keys and values, (rows, n, P, C) each.
            others: Keys and values, (rows, m, P', C) each; the first n are these frames' own, which
                each of them leaves out for itself.

        Returns:
            (rows * n, P, C).
        """
        frames = sides[0].shape[1]
        out = [
            self._of_frame(*frame, slice(i, None, frames))
            for i, frame in enumerate(beside(sides, others))
        ]
        return torch.stack(out, 1).flatten(0, 1)

    def project_out(self, tokens: Tensor) -> Tensor:
        """Returns the tokens as they are: the block projects what it gets back."""
        return tokens

    def whole(self, image: Tensor) -> Tensor:
        """Puts the image's output back among the other tokens'.

        Args:
            image: (rows * n, P, C).

        Returns:
            (rows * n, T, C).
        """
        others = torch.zeros_like(self.whole_sides[0]) if self.others is None else self.others
        if others.shape[1] == image.shape[1]:
            return image
        others[:, self.place] = image
        return others

    def _of_frame(self, queries: Tensor, keys: Tensor, values: Tensor, rows: slice) -> Tensor:
        """Attends for one frame of each conditioning, or for all of them with their own tokens.

        queries (b, P, C), keys and values (b, K, C) are the image's; rows: the frames among the
        call's. Returns (b, P, C).
        """
        begin, end = self.place.start, self.place.stop
        size = queries.shape[1]
        frames = _times(keys.shape[1], size)

        def among(whole: Tensor, part: Tensor, times: int) -> Tensor:
            before, behind = whole[rows, :begin], whole[rows, end:]
            return torch.cat([*[before] * times, part, *[behind] * times], 1)

        q = among(self.whole_sides[0], queries, 1)
        k, v = (
            among(whole, part, frames)
            for whole, part in zip(self.whole_sides[1:], (keys, values), strict=True)
        )
        out = self.function(q, k, v, self._mask(rows, frames))
        if begin or end < self.whole_sides[0].shape[1]:
            if self.others is None:
                self.others = torch.zeros_like(self.whole_sides[0])
            self.others[rows, :begin] = out[:, :begin]
            self.others[rows, end:] = out[:, begin + size :]
        return out[:, begin : begin + size]

    def _mask(self, rows: slice, frames: int) -> Tensor | None:
        """The host's mask for some frames' tokens attending to the image tokens of `frames`."""
        mask = self.mask
        if mask is None:
            return None
        if mask.ndim > 2 and mask.shape[0] == len(self.whole_sides[0]):
            mask = mask[rows]
        parts = mask[..., : self.place.start], mask[..., self.place], mask[..., self.place.stop :]
        return torch.cat([part for part in parts for _ in range(frames)], -1)


def _times(tokens: int, size: int) -> int:
    """How often text counts beside so many image tokens, of frames that have `size`.

    Merged tokens count as those that there are. Whole times, since a weight between them would take
    a mask, which not all of the host's attention backends have.
    """
    return max(1, (2 * tokens + size) // (2 * size))


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
