"""Inversion and edits of a clip by a transformer, frame by frame from their formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import Asked, Network, Prompt, Running, State, attend

# An attention of the network: its block, and the how manieth of it.
Site = tuple[str, int]
Grid = tuple[int, int]
# Of a clip with many keyframes: positions of those that all attend to, every window's own, and
# those before a window that it attends to.
Windows = tuple[list[int], list[list[int]], list[list[int]]]


@dataclass(frozen=True)
class Matches:
    """Of n frames with k keyframes: the two that each follows (n,), the later one's weight for each
    token (n, P), and the tokens that each token matches in them (n, P).
    """

    past: Tensor
    future: Tensor
    weight: Tensor
    past_tokens: Tensor
    future_tokens: Tensor

    def carried(self, keyframes: Sequence[Tensor], frame: int) -> Tensor:
        """Equation 6: (P, D) of one frame from the keyframes' (P, D)."""
        before = keyframes[int(self.past[frame])][self.past_tokens[frame].long()]
        after = keyframes[int(self.future[frame])][self.future_tokens[frame].long()]
        weight = self.weight[frame][:, None]
        return (1 - weight) * before + weight * after

    def pictures(self, keyframes: Tensor, patch: int) -> Tensor:
        """Latents (n, C, h, w) from the keyframes' (k, C, h, w), a token's pixels at a time."""
        size = keyframes.shape[2:]
        tokens = F.unfold(keyframes, patch, stride=patch).transpose(1, 2)
        made = torch.stack([self.carried(list(tokens), i) for i in range(len(self.past))])
        return F.fold(made.transpose(1, 2), size, patch, stride=patch)

    def voted(self, keyframes: Tensor, patch: int) -> Tensor:
        """The same by vote: the mean over the nine pictures that there are if every token comes
        from where its own or one of the eight matches beside it, moved back, says.
        """
        rows, columns = keyframes.shape[2] // patch, keyframes.shape[3] // patch

        def beside(tokens: Tensor, down: int, right: int) -> Tensor:
            found = tokens.long().clone()
            for i in range(rows * columns):
                y, x = i // columns + down, i % columns + right
                if 0 <= y < rows and 0 <= x < columns:
                    for frame, own in enumerate(tokens.tolist()):
                        row, column = divmod(own[y * columns + x], columns)
                        if 0 <= row - down < rows and 0 <= column - right < columns:
                            found[frame, i] = (row - down) * columns + column - right
            return found

        pictures = []
        for way in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
            sides = [beside(tokens, *way) for tokens in (self.past_tokens, self.future_tokens)]
            moved = Matches(self.past, self.future, self.weight, *sides)
            pictures.append(moved.pictures(keyframes, patch))
        return torch.stack(pictures).mean(0)


@dataclass
class Left:
    """What a keyframe leaves: by attention its image tokens' queries, keys, values (P, heads, d)
    and output (P, heads * d), and what the inner blocks have added to the tokens.
    """

    sides: dict[Site, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    output: dict[Site, Tensor] = field(default_factory=dict)
    added: Tensor | None = None


def keyframes_velocity(
    net: Network,
    frames: Sequence[Tensor],
    sigma: float,
    prompt: Prompt,
    inner: Sequence[str] = (),
    others: Sequence[Left] = (),
    source: Sequence[Left] = (),
    merged: Grid | None = None,
) -> tuple[list[Tensor], list[Left]]:
    """Keyframes attend to their own text and to the image tokens of them all and of `others`
    (equation 5); the text counts as often as there are keyframes.

    source: what the source's frames have left, whose queries and keys take the place of theirs.
    merged: rows and columns of a frame's tokens, which are means of 2 x 2 where other keyframes
    look at them; None if they see them all.
    """
    left, states = [Left() for _ in frames], [net.enter(x, sigma, prompt) for x in frames]
    before: list[Tensor] = []
    ran = 0
    for name in net.blocks:
        if inner and name == inner[0]:
            before = [_own(state.image, state) for state in states]
        running = [net.run(name, state) for state in states]
        asked, count = [next(block) for block in running], 0
        while asked:
            site = name, count
            spans = [
                slice(words, len(q) - state.padding)
                for (q, *_, words), state in zip(asked, states, strict=True)
            ]
            for i, ((q, k, v, _), span) in enumerate(zip(asked, spans, strict=True)):
                if source:
                    q[span], k[span] = source[i].sides[site][:2]
                left[i].sides[site] = q[span], k[span], v[span]
            among = [one.sides[site] for one in (*left, *others)]
            out = [
                _joint(part, span, _seen(among, i, merged), ran)
                for i, (part, span) in enumerate(zip(asked, spans, strict=True))
            ]
            for one, part, span in zip(left, out, spans, strict=True):
                one.output[site] = part[span]
            asked, count, ran = _sent(running, out), count + 1, ran + 1
        if inner and name == inner[-1]:
            for one, state, image in zip(left, states, before, strict=True):
                one.added = _own(state.image, state) - image
    return [net.leave(state) for state in states], left


def _joint(asked: Asked, span: slice, among: Sequence[tuple[Tensor, ...]], ran: int) -> Tensor:
    """One frame's tokens attending to its own text and padding, and to image tokens `among`.

    ran: how many attentions of the network have.
    """
    q, k, v, words = asked
    keys, values = (
        torch.cat([own[:words], *(sides[i] for sides in among), own[span.stop :]])
        for i, own in ((1, k), (2, v))
    )
    # Text and padding count once for as many image tokens as a frame has: whole times, those that
    # are full by this attention and were not by the one before.
    share = Fraction(sum(len(sides[1]) for sides in among), span.stop - span.start)
    times = math.floor((ran + 1) * share) - math.floor(ran * share)
    extra = torch.full((len(keys),), math.log(times))
    extra[words : len(keys) - (len(k) - span.stop)] = 0
    return attend(q, keys, values, extra)


def _seen(
    among: Sequence[tuple[Tensor, ...]], own: int, merged: Grid | None
) -> list[tuple[Tensor, ...]]:
    """What one of some keyframes sees of them: queries, keys, values."""
    if merged is None:
        return list(among)
    return [
        sides if i == own else tuple(_means(part, merged) for part in sides)
        for i, sides in enumerate(among)
    ]


def _means(tokens: Tensor, grid: Grid) -> Tensor:
    rows, columns = grid
    laid = tokens.unflatten(0, grid)
    return torch.stack(
        [
            laid[y : y + 2, x : x + 2].flatten(0, 1).mean(0)
            for y in range(0, rows, 2)
            for x in range(0, columns, 2)
        ]
    )


def keyframes_in_windows(
    net: Network,
    frames: Sequence[Tensor],
    sigma: float,
    prompt: Prompt,
    windows: Windows,
    inner: Sequence[str] = (),
    merged: Grid | None = None,
) -> tuple[list[Tensor], list[Left]]:
    """Keyframes window by window: beside each other they attend to those just before them, and to
    the anchors, which were edited together first. merged: as of `keyframes_velocity`.
    """
    anchors, owns, befores = windows
    _, anchored = keyframes_velocity(
        net, [frames[i] for i in anchors], sigma, prompt, merged=merged
    )
    left: list[Left] = []
    found: list[Tensor] = []
    for own, before in zip(owns, befores, strict=True):
        others = [one for i, one in zip(anchors, anchored, strict=True) if i not in (*own, *before)]
        others += [left[i] for i in before]
        velocity, more = keyframes_velocity(
            net, [frames[i] for i in own], sigma, prompt, inner, others, merged=merged
        )
        left, found = left + more, found + velocity
    return found, left


def frames_velocity(
    net: Network,
    frames: Sequence[Tensor],
    sigma: float,
    prompt: Prompt,
    keyframes: Sequence[Left],
    matches: Matches,
    inner: Sequence[str] = (),
) -> list[Tensor]:
    """Frames between: attention's output is the keyframes', and what the inner blocks add."""
    states = [net.enter(x, sigma, prompt) for x in frames]
    for name in net.blocks:
        if name in inner:
            if name == inner[-1]:
                added = [one.added for one in keyframes if one.added is not None]
                for i, state in enumerate(states):
                    more = matches.carried(added, i)
                    state.image = state.image + F.pad(more, (0, 0, 0, state.padding))
            continue
        running = [net.run(name, state) for state in states]
        asked, count = [next(block) for block in running], 0
        while asked:
            out = []
            for i, (q, _, _, words) in enumerate(asked):
                whole = torch.zeros(len(q), q.shape[1] * q.shape[2])
                carried = matches.carried([one.output[name, count] for one in keyframes], i)
                whole[words : words + len(carried)] = carried
                out.append(whole)
            asked, count = _sent(running, out), count + 1
    return [net.leave(state) for state in states]


def plain(net: Network, x: Tensor, sigma: float, prompt: Prompt) -> tuple[Tensor, Left]:
    """One frame's velocity as the model is, and what it leaves."""
    velocity, left = keyframes_velocity(net, [x], sigma, prompt)
    return velocity[0], left[0]


def _own(image: Tensor, state: State) -> Tensor:
    return image[: len(image) - state.padding]


def _sent(running: Sequence[Running], out: Sequence[Tensor]) -> list[Asked]:
    """What the blocks ask for next; empty once they are through."""
    asked = []
    for block, part in zip(running, out, strict=True):
        try:
            asked.append(block.send(part))
        except StopIteration:
            continue
    return asked


def invert(
    net: Network, clean: Tensor, sigmas: Tensor, prompt: Prompt, iterations: int = 0
) -> Tensor:
    """The path (S+1, N, C, h, w) at falling sigmas: Euler steps upwards, each with the velocity at
    its noisier end.
    """
    path = [clean]
    for high, low in zip(sigmas.flip(0)[1:], sigmas.flip(0), strict=False):
        start = x = path[0]
        for _ in range(1 + iterations):
            velocity = [plain(net, frame, float(high), prompt)[0] for frame in x]
            x = start + (high - low) * torch.stack(velocity)
        path.insert(0, x)
    return torch.stack(path)
