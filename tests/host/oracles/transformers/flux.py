"""Flux.1 by its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import (
    Network,
    Prompt,
    Running,
    State,
    angles,
    gelu,
    layer_norm,
    rms,
    rotated,
    rows_and_columns,
    sinusoid,
)


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
