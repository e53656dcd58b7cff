"""One call of the attention in a transformer's block, in the form that passes take.

A block attends over one sequence: the text's tokens and the image's, in an order of its own. Passes
see the image's alone. Their queries, keys and values come from the host projected, normed and
rotated, so what passes call tokens are these; all frames' image tokens have the same positions, and
keep them where they are joined or carried.

Text goes on attending to itself and to all the image tokens that its frame attends to. Beside the
image tokens of several frames it counts as many times as there are frames, by their tokens: else it
would have the less to say the more keyframes are edited together, and equal frames would not be
edited as one of them. Frames that attend to nothing, because they take what keyframes have found,
need no text: theirs is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tokenflow_ops.passes import AttentionCall, beside

# Under which name, after the layer's, the source's queries and keys are known.
QUERIES_AND_KEYS = ".queries_and_keys"


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
        number: Of the layer among all of the model, from 0.
        others: The output of the other tokens, (rows * n, T, C), as far as it is computed.
    """

    function: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    whole_sides: tuple[Tensor, Tensor, Tensor]
    place: slice
    mask: Tensor | None
    rows_columns: tuple[int, int]
    number: int
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
            self._of_frame(*frame, slice(i, None, frames), merged=True)
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

    def _of_frame(
        self, queries: Tensor, keys: Tensor, values: Tensor, rows: slice, merged: bool = False
    ) -> Tensor:
        """Attends for one frame of each conditioning, or for all of them with their own tokens.

        queries (b, P, C), keys and values (b, K, C) are the image's; rows: the frames among the
        call's. merged: all keys but the first frame's are merged ones. Returns (b, P, C).
        """
        begin, end = self.place.start, self.place.stop
        size, count = queries.shape[1], keys.shape[1]
        times = text_times(count, size, self.number)

        def among(whole: Tensor, part: Tensor, times: int) -> Tensor:
            before, behind = whole[rows, :begin], whole[rows, end:]
            return torch.cat([*[before] * times, part, *[behind] * times], 1)

        q = among(self.whole_sides[0], queries, 1)
        k, v = (
            among(whole, part, times)
            for whole, part in zip(self.whole_sides[1:], (keys, values), strict=True)
        )
        out = self.function(q, k, v, self._mask(rows, times, count, merged))
        if begin or end < self.whole_sides[0].shape[1]:
            if self.others is None:
                self.others = torch.zeros_like(self.whole_sides[0])
            self.others[rows, :begin] = out[:, :begin]
            self.others[rows, end:] = out[:, begin + size :]
        return out[:, begin : begin + size]

    def _mask(self, rows: slice, times: int, count: int, merged: bool) -> Tensor | None:
        """The host's mask for some frames' tokens attending to so many image tokens."""
        mask = self.mask
        if mask is None:
            return None
        if mask.ndim > 2 and mask.shape[0] == len(self.whole_sides[0]):
            mask = mask[rows]
        begin, end = self.place.start, self.place.stop
        before, own, behind = mask[..., :begin], mask[..., self.place], mask[..., end:]
        other = _merged_mask(own, self.grid) if merged else own
        others = (count - own.shape[-1]) // other.shape[-1]
        return torch.cat([*[before] * times, own, *[other] * others, *[behind] * times], -1)


def _merged_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Columns (..., P') of merged tokens from those of a frame's, (..., P).

    A merged token is seen as the one of its tokens that is seen best.
    """
    laid = mask.flatten(0, -2).unflatten(1, grid).float()
    return F.max_pool2d(laid, 2, ceil_mode=True).to(mask.dtype).reshape(*mask.shape[:-1], -1)


def text_times(tokens: int, size: int, number: int) -> int:
    """Counts how often a layer puts text beside image tokens of several frames.

    Merged tokens count as what there is of them. Where they do not make whole frames, the layers
    take turns with the two numbers around, so that all of them together have the right share: a
    weight would take a mask, with which some of the host's attention backends are slower, and
    others go without it.

    Args:
        tokens: How many image tokens there are.
        size: How many a frame has, at most as many.
        number: Of the layer among all of the model, from 0.

    Returns:
        1 or more.

    Examples:
        >>> [text_times(20, 16, number) for number in range(5)]
        [1, 1, 1, 2, 1]
        >>> text_times(48, 16, number=5)
        3
    """
    return (number + 1) * tokens // size - number * tokens // size
