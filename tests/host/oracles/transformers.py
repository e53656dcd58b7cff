"""Image transformers and the method on them, written down a second time from their formulas.

Shares no code with the pack, and nothing with the host: a network is its weights by name. Frames
run one by one; softmax attention, float32. A frame's latents are (C, h, w), image tokens (P, D), a
prompt's tokens (T, D).

A block is a generator: it hands over queries, keys and values (T + P, heads, d), text first, and
how many of them are the text's; it is sent the attention's output (T + P, heads * d).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

Asked = tuple[Tensor, Tensor, Tensor, int]
Running = Generator[Asked, Tensor, None]


@dataclass
class State:
    """One frame between two blocks. vector: noise level and pooled prompt. angles: the rotation of
    every token, text first.
    """

    image: Tensor
    text: Tensor
    vector: Tensor
    size: tuple[int, int]
    angles: Tensor | None = None
    padding: int = 0


@dataclass(frozen=True)
class Prompt:
    """tokens (T, D), and pooled (D,) or None."""

    tokens: Tensor
    pooled: Tensor | None = None


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def sinusoid(value: float, width: int = 256) -> Tensor:
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([(value * rates).cos(), (value * rates).sin()])


def angles(places: Tensor, widths: Sequence[int], theta: float) -> Tensor:
    """Of tokens at places (T, axes): (T, sum of widths / 2)."""
    return torch.cat(
        [
            places[:, axis : axis + 1].double()
            / theta ** (torch.arange(0, width, 2).double() / width)
            for axis, width in enumerate(widths)
        ],
        1,
    ).float()


def rotated(x: Tensor, turned: Tensor) -> Tensor:
    """(T, heads, d) with every pair of neighbours turned by its token's angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = turned.cos()[:, None], turned.sin()[:, None]
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2)


def rows_and_columns(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], 1).float()


class Network(ABC):
    """Weights by name, and what all families compute alike."""

    blocks: tuple[str, ...]

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def numbered(self, part: str) -> tuple[str, ...]:
        """The blocks of one part, in order."""
        numbers = {int(name.split(".")[1]) for name in self.weights if name.startswith(f"{part}.")}
        return tuple(f"{part}.{number}" for number in sorted(numbers))

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def two_layers(self, first: str, second: str, x: Tensor, between: object = F.silu) -> Tensor:
        assert callable(between)
        return self.linear(second, between(self.linear(first, x)))

    def scale(self, name: str) -> Tensor:
        """A norm's weights; newer hosts call Flux's otherwise."""
        for ending in ("weight", "scale"):
            if f"{name}.{ending}" in self.weights:
                return self.weights[f"{name}.{ending}"]
        raise KeyError(name)

    @abstractmethod
    def enter(self, x: Tensor, sigma: float, prompt: Prompt) -> State:
        """A noisy frame (C, h, w) before the first block."""

    @abstractmethod
    def run(self, block: str, state: State) -> Running:
        """One block, which changes the state."""

    @abstractmethod
    def leave(self, state: State) -> Tensor:
        """The velocity, (C, h, w)."""


class SD3(Network):
    """Stable Diffusion 3, and 3.5 medium with a second attention over the image alone."""

    patch = 2

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.blocks = self.numbered("joint_blocks")

    def enter(self, x: Tensor, sigma: float, prompt: Prompt) -> State:
        kernel = self.weights["x_embedder.proj.weight"]
        height, width = x.shape[1:]
        patches = F.unfold(x[None], self.patch, stride=self.patch)[0].T
        image = patches @ kernel.flatten(1).T + self.weights["x_embedder.proj.bias"]
        table = self.weights["pos_embed"][0]
        side, rows, columns = math.isqrt(len(table)), height // self.patch, width // self.patch
        top, left = (side - rows) // 2, (side - columns) // 2
        table = table.view(side, side, -1)[top : top + rows, left : left + columns].flatten(0, 1)
        vector = self.two_layers("t_embedder.mlp.0", "t_embedder.mlp.2", sinusoid(1000 * sigma))
        if prompt.pooled is not None:
            vector = vector + self.two_layers("y_embedder.mlp.0", "y_embedder.mlp.2", prompt.pooled)
        text = self.linear("context_embedder", prompt.tokens)
        return State(image + table, text, vector, (height, width))

    def modulation(self, name: str, state: State) -> tuple[Tensor, ...]:
        made = self.linear(f"{name}.adaLN_modulation.1", F.silu(state.vector))
        return made.unflatten(0, (-1, state.image.shape[1])).unbind(0)

    def sides(self, name: str, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (
            self.linear(f"{name}.qkv", layer_norm(x) * (1 + scale) + shift)
            .unflatten(1, (3, -1, 64))
            .unbind(1)
        )
        return rms(q, self.scale(f"{name}.ln_q")), rms(k, self.scale(f"{name}.ln_k")), v

    def run(self, block: str, state: State) -> Running:
        words, image, text = len(state.text), state.image, state.text
        of_image = self.modulation(f"{block}.x_block", state)
        of_text = self.modulation(f"{block}.context_block", state)
        second = f"{block}.x_block.attn2"
        twice = f"{second}.qkv.weight" in self.weights
        image_sides = self.sides(f"{block}.x_block.attn", image, *of_image[:2])
        again = self.sides(second, image, *of_image[6:8]) if twice else None
        # The last block's text goes no further, and has two numbers alone: scale comes second too.
        text_sides = self.sides(f"{block}.context_block.attn", text, *of_text[:2])
        q, k, v = (torch.cat(part) for part in zip(text_sides, image_sides, strict=True))
        out = yield q, k, v, words
        image = image + of_image[2] * self.linear(f"{block}.x_block.attn.proj", out[words:])
        if again is not None:
            out2 = yield *again, 0
            image = image + of_image[8] * self.linear(f"{second}.proj", out2)
        state.image = self.fed_forward(f"{block}.x_block", image, of_image)
        if len(of_text) > 2:
            text = text + of_text[2] * self.linear(f"{block}.context_block.attn.proj", out[:words])
            state.text = self.fed_forward(f"{block}.context_block", text, of_text)

    def fed_forward(self, name: str, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        normed = layer_norm(x) * (1 + modulation[4]) + modulation[3]
        more = self.two_layers(f"{name}.mlp.fc1", f"{name}.mlp.fc2", normed, gelu)
        return x + modulation[5] * more

    def leave(self, state: State) -> Tensor:
        shift, scale = self.linear("final_layer.adaLN_modulation.1", F.silu(state.vector)).chunk(2)
        out = self.linear("final_layer.linear", layer_norm(state.image) * (1 + scale) + shift)
        (height, width), p = state.size, self.patch
        patches = out.view(height // p, width // p, p, p, -1).permute(4, 0, 2, 1, 3)
        return patches.reshape(-1, height, width)


class Flux(Network):
    """Flux.1."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        heads: int = 2,
        axes: Sequence[int] = (16, 24, 24),
        guidance: float = 3.5,
    ) -> None:
        super().__init__(weights)
        self.heads, self.axes, self.guidance = heads, axes, guidance
        self.blocks = self.numbered("double_blocks") + self.numbered("single_blocks")

    def enter(self, x: Tensor, sigma: float, prompt: Prompt) -> State:
        channels, height, width = x.shape
        patches = x.view(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
        assert prompt.pooled is not None
        vector = self.embedded("time_in", sinusoid(1000 * sigma)) + self.embedded(
            "vector_in", prompt.pooled
        )
        if "guidance_in.in_layer.weight" in self.weights:
            vector = vector + self.embedded("guidance_in", sinusoid(1000 * self.guidance))
        places = F.pad(rows_and_columns(height // 2, width // 2), (1, 0))
        places = torch.cat([torch.zeros(len(prompt.tokens), 3), places])
        return State(
            self.linear("img_in", patches.flatten(2).flatten(0, 1)),
            self.linear("txt_in", prompt.tokens),
            vector,
            (height, width),
            angles(places, self.axes, 10000),
        )

    def embedded(self, name: str, x: Tensor) -> Tensor:
        return self.two_layers(f"{name}.in_layer", f"{name}.out_layer", x)

    def normed(self, name: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (
            rms(q, self.scale(f"{name}.query_norm")),
            rms(k, self.scale(f"{name}.key_norm")),
        )

    def run(self, block: str, state: State) -> Running:
        return self.double(block, state) if "double" in block else self.single(block, state)

    def double(self, block: str, state: State) -> Running:
        words, streams = len(state.text), {"txt": state.text, "img": state.image}
        modulation, sides = {}, []
        for name, x in streams.items():
            m = self.linear(f"{block}.{name}_mod.lin", F.silu(state.vector)).chunk(6)
            modulation[name] = m
            q, k, v = (
                self.linear(f"{block}.{name}_attn.qkv", layer_norm(x) * (1 + m[1]) + m[0])
                .unflatten(1, (3, self.heads, -1))
                .unbind(1)
            )
            sides.append((*self.normed(f"{block}.{name}_attn.norm", q, k), v))
        q, k, v = (torch.cat(part) for part in zip(*sides, strict=True))
        assert state.angles is not None
        out = yield rotated(q, state.angles), rotated(k, state.angles), v, words
        for name, part in (("txt", out[:words]), ("img", out[words:])):
            m = modulation[name]
            x = streams[name] + m[2] * self.linear(f"{block}.{name}_attn.proj", part)
            normed = layer_norm(x) * (1 + m[4]) + m[3]
            more = self.two_layers(f"{block}.{name}_mlp.0", f"{block}.{name}_mlp.2", normed, gelu)
            streams[name] = x + m[5] * more
        state.text, state.image = streams["txt"], streams["img"]

    def single(self, block: str, state: State) -> Running:
        words, x = len(state.text), torch.cat([state.text, state.image])
        shift, scale, gate = self.linear(f"{block}.modulation.lin", F.silu(state.vector)).chunk(3)
        both = self.linear(f"{block}.linear1", layer_norm(x) * (1 + scale) + shift)
        q, k, v = both[:, : 3 * x.shape[1]].unflatten(1, (3, self.heads, -1)).unbind(1)
        q, k = self.normed(f"{block}.norm", q, k)
        assert state.angles is not None
        out = yield rotated(q, state.angles), rotated(k, state.angles), v, words
        more = torch.cat([out, gelu(both[:, 3 * x.shape[1] :])], 1)
        x = x + gate * self.linear(f"{block}.linear2", more)
        state.text, state.image = x[:words], x[words:]

    def leave(self, state: State) -> Tensor:
        shift, scale = self.linear("final_layer.adaLN_modulation.1", F.silu(state.vector)).chunk(2)
        out = self.linear("final_layer.linear", layer_norm(state.image) * (1 + scale) + shift)
        height, width = state.size
        patches = out.view(height // 2, width // 2, -1, 2, 2).permute(2, 0, 3, 1, 4)
        return patches.reshape(-1, height, width)


class ZImage(Network):
    """Z-Image: one stream of text and image, both padded to multiples of 32 tokens."""

    pad = 32

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        heads: int = 8,
        axes: Sequence[int] = (8, 12, 12),
        theta: float = 256.0,
    ) -> None:
        super().__init__(weights)
        self.heads, self.axes, self.theta = heads, axes, theta
        self.blocks = self.numbered("layers")

    def enter(self, x: Tensor, sigma: float, prompt: Prompt) -> State:
        channels, height, width = x.shape
        patches = x.view(channels, height // 2, 2, width // 2, 2).permute(1, 3, 2, 4, 0)
        image = self.linear("x_embedder", patches.flatten(2).flatten(0, 1))
        vector = self.two_layers(
            "t_embedder.mlp.0", "t_embedder.mlp.2", sinusoid(1000 * (1 - sigma))
        )
        text = self.linear("cap_embedder.1", rms(prompt.tokens, self.scale("cap_embedder.0"), 1e-5))
        text = torch.cat([text, self.padding("cap_pad_token", len(text))])
        words, tokens = len(text), len(image)
        image = torch.cat([image, self.padding("x_pad_token", tokens)])
        padding = len(image) - tokens
        places = torch.cat(
            [
                F.pad(torch.arange(1.0, words + 1)[:, None], (0, 2)),
                F.pad(rows_and_columns(height // 2, width // 2), (1, 0), value=words + 1),
                torch.zeros(padding, 3),
            ]
        )
        state = State(
            image, text, vector, (height, width), angles(places, self.axes, self.theta), padding
        )
        assert state.angles is not None
        for block in self.numbered("context_refiner"):
            state.text = self.alone(block, state.text, state.angles[:words], None)
        for block in self.numbered("noise_refiner"):
            state.image = self.alone(block, state.image, state.angles[words:], vector)
        return state

    def padding(self, name: str, count: int) -> Tensor:
        return self.weights[name].expand(-count % self.pad, -1)

    def alone(self, block: str, x: Tensor, turned: Tensor, vector: Tensor | None) -> Tensor:
        running = self.stream(block, x, turned, vector)
        q, k, v = next(running)
        try:
            running.send(attend(q, k, v))
        except StopIteration as end:
            found: Tensor = end.value
            return found
        raise AssertionError("a block attends once")

    def stream(
        self, block: str, x: Tensor, turned: Tensor, vector: Tensor | None
    ) -> Generator[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        one = torch.ones(())
        scales: Sequence[Tensor] = (one * 0, one, one * 0, one)
        if vector is not None:
            made = self.linear(f"{block}.adaLN_modulation.0", vector).chunk(4)
            scales = made[0], made[1].tanh(), made[2], made[3].tanh()
        normed = rms(x, self.scale(f"{block}.attention_norm1"), 1e-5) * (1 + scales[0])
        q, k, v = (
            self.linear(f"{block}.attention.qkv", normed)
            .unflatten(1, (3, self.heads, -1))
            .unbind(1)
        )
        tiny = torch.finfo(torch.float32).eps
        q = rms(q, self.scale(f"{block}.attention.q_norm"), tiny)
        k = rms(k, self.scale(f"{block}.attention.k_norm"), tiny)
        out = yield rotated(q, turned), rotated(k, turned), v
        out = self.linear(f"{block}.attention.out", out)
        x = x + scales[1] * rms(out, self.scale(f"{block}.attention_norm2"), 1e-5)
        normed = rms(x, self.scale(f"{block}.ffn_norm1"), 1e-5) * (1 + scales[2])
        gated = F.silu(self.linear(f"{block}.feed_forward.w1", normed)) * self.linear(
            f"{block}.feed_forward.w3", normed
        )
        more = self.linear(f"{block}.feed_forward.w2", gated)
        return x + scales[3] * rms(more, self.scale(f"{block}.ffn_norm2"), 1e-5)

    def run(self, block: str, state: State) -> Running:
        words = len(state.text)
        assert state.angles is not None
        running = self.stream(
            block, torch.cat([state.text, state.image]), state.angles, state.vector
        )
        out = yield *next(running), words
        try:
            running.send(out)
        except StopIteration as end:
            state.text, state.image = end.value[:words], end.value[words:]

    def leave(self, state: State) -> Tensor:
        scale = self.linear("final_layer.adaLN_modulation.1", F.silu(state.vector))
        image = state.image[: len(state.image) - state.padding]
        out = self.linear("final_layer.linear", layer_norm(image) * (1 + scale))
        height, width = state.size
        patches = out.view(height // 2, width // 2, 2, 2, -1).permute(4, 0, 2, 1, 3)
        return -patches.reshape(-1, height, width)


def attend(q: Tensor, k: Tensor, v: Tensor, extra: Tensor | None = None) -> Tensor:
    """(T, heads, d) each: (T, heads * d). extra: added to the scores of every key."""
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    if extra is not None:
        scores = scores + extra
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)


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


@dataclass
class Bank:
    """What keyframes leave: by attention its output of the image's tokens, and what the inner
    blocks have added to these.
    """

    attention: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    added: list[Tensor] = field(default_factory=list)


def keyframes_velocity(
    net: Network,
    frames: Sequence[Tensor],
    sigma: float,
    prompt: Prompt,
    inner: Sequence[str] = (),
) -> tuple[list[Tensor], Bank]:
    """Keyframes attend to their own text and to all keyframes' image tokens (equation 5); the text
    counts as often as there are keyframes.
    """
    bank, states = Bank(), [net.enter(x, sigma, prompt) for x in frames]
    before: list[Tensor] = []
    for name in net.blocks:
        if inner and name == inner[0]:
            before = [state.image for state in states]
        running = [net.run(name, state) for state in states]
        asked, count = [next(block) for block in running], 0
        while asked:
            tokens = [
                len(q) - words - state.padding
                for (q, *_, words), state in zip(asked, states, strict=True)
            ]
            spans = [
                slice(words, words + size) for (*_, words), size in zip(asked, tokens, strict=True)
            ]
            out = []
            for (q, k, v, words), span in zip(asked, spans, strict=True):
                keys = torch.cat(
                    [
                        k[:words],
                        *[other[1][at] for other, at in zip(asked, spans, strict=True)],
                        k[span.stop :],
                    ]
                )
                values = torch.cat(
                    [
                        v[:words],
                        *[other[2][at] for other, at in zip(asked, spans, strict=True)],
                        v[span.stop :],
                    ]
                )
                # Text and padding count once for every keyframe.
                extra = torch.full((len(keys),), math.log(len(frames)))
                extra[words : len(keys) - (len(k) - span.stop)] = 0
                out.append(attend(q, keys, values, extra))
            bank.attention[name, count] = [o[span] for o, span in zip(out, spans, strict=True)]
            asked, count = _sent(running, out), count + 1
        if inner and name == inner[-1]:
            bank.added = [_own(s.image - b, s) for s, b in zip(states, before, strict=True)]
    return [net.leave(state) for state in states], bank


def frames_velocity(
    net: Network,
    frames: Sequence[Tensor],
    sigma: float,
    prompt: Prompt,
    bank: Bank,
    matches: Matches,
    inner: Sequence[str] = (),
) -> list[Tensor]:
    """Frames between: attention's output is the keyframes', and what the inner blocks add."""
    states = [net.enter(x, sigma, prompt) for x in frames]
    for name in net.blocks:
        if name in inner:
            if name == inner[-1]:
                for i, state in enumerate(states):
                    more = matches.carried(bank.added, i)
                    state.image = state.image + F.pad(more, (0, 0, 0, state.padding))
            continue
        running = [net.run(name, state) for state in states]
        asked, count = [next(block) for block in running], 0
        while asked:
            out = []
            for i, (q, _, _, words) in enumerate(asked):
                whole = torch.zeros(len(q), q.shape[1] * q.shape[2])
                carried = matches.carried(bank.attention[name, count], i)
                whole[words : words + len(carried)] = carried
                out.append(whole)
            asked, count = _sent(running, out), count + 1
    return [net.leave(state) for state in states]


def plain_velocity(net: Network, x: Tensor, sigma: float, prompt: Prompt) -> Tensor:
    """One frame as the model is."""
    return keyframes_velocity(net, [x], sigma, prompt)[0][0]


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
            velocity = [plain_velocity(net, frame, float(high), prompt) for frame in x]
            x = start + (high - low) * torch.stack(velocity)
        path.insert(0, x)
    return torch.stack(path)
