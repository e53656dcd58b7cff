"""Z-Image by its weights."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import (
    Network,
    Prompt,
    Running,
    State,
    angles,
    attend,
    layer_norm,
    rms,
    rotated,
    rows_and_columns,
    sinusoid,
)


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
