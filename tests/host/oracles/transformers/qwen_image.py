"""Qwen-Image by its weights."""

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


class QwenImage(Network):
    """Qwen-Image: the picture's middle is the origin, the text lies behind it on the diagonal."""

    def __init__(
        self, weights: Mapping[str, Tensor], heads: int = 2, axes: Sequence[int] = (8, 12, 12)
    ) -> None:
        super().__init__(weights)
        self.heads, self.axes = heads, axes
        self.blocks = self.numbered("transformer_blocks")

    def enter(self, x: Tensor, sigma: float, prompt: Prompt) -> State:
        channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        patches = x.view(channels, rows, 2, columns, 2).permute(1, 3, 0, 2, 4)
        name = "time_text_embed.timestep_embedder.linear"
        vector = self.two_layers(f"{name}_1", f"{name}_2", sinusoid(1000 * sigma))
        middle = torch.tensor([rows // 2, columns // 2])
        first = max(rows // 2, columns // 2)
        behind = torch.arange(first, first + len(prompt.tokens)).float()
        places = F.pad(rows_and_columns(rows, columns) - middle, (1, 0))
        places = torch.cat([behind[:, None].expand(-1, 3), places])
        return State(
            self.linear("img_in", patches.flatten(2).flatten(0, 1)),
            self.linear("txt_in", rms(prompt.tokens, self.scale("txt_norm"))),
            vector,
            (height, width),
            angles(places, self.axes, 10000),
        )

    def run(self, block: str, state: State) -> Running:
        streams = {"txt": state.text, "img": state.image}
        # Of a text's tokens and an image's: queries, keys, values, their norms, the way out.
        names = {
            "txt": ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added", "to_add_out"),
            "img": ("to_q", "to_k", "to_v", "norm", "to_out.0"),
        }
        modulation, sides = {}, []
        for name, x in streams.items():
            m = self.linear(f"{block}.{name}_mod.1", F.silu(state.vector)).chunk(6)
            modulation[name] = m
            normed = layer_norm(x) * (1 + m[1]) + m[0]
            *projections, norm, _ = names[name]
            q, k, v = (
                self.linear(f"{block}.attn.{part}", normed).unflatten(1, (self.heads, -1))
                for part in projections
            )
            norm = f"{block}.attn.{norm}"
            sides.append((rms(q, self.scale(f"{norm}_q")), rms(k, self.scale(f"{norm}_k")), v))
        q, k, v = (torch.cat(part) for part in zip(*sides, strict=True))
        words = len(state.text)
        assert state.angles is not None
        out = yield rotated(q, state.angles), rotated(k, state.angles), v, words
        for name, part in (("txt", out[:words]), ("img", out[words:])):
            m = modulation[name]
            x = streams[name] + m[2] * self.linear(f"{block}.attn.{names[name][-1]}", part)
            normed = layer_norm(x) * (1 + m[4]) + m[3]
            mlp = f"{block}.{name}_mlp.net"
            streams[name] = x + m[5] * self.two_layers(f"{mlp}.0.proj", f"{mlp}.2", normed, gelu)
        state.text, state.image = streams["txt"], streams["img"]

    def leave(self, state: State) -> Tensor:
        scale, shift = self.linear("norm_out.linear", F.silu(state.vector)).chunk(2)
        out = self.linear("proj_out", layer_norm(state.image) * (1 + scale) + shift)
        height, width = state.size
        patches = out.view(height // 2, width // 2, -1, 2, 2).permute(2, 0, 3, 1, 4)
        return patches.reshape(-1, height, width)
