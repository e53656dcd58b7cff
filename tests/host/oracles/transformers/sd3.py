"""Stable Diffusion 3 and 3.5 medium by their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import Network, Prompt, Running, State, gelu, layer_norm, rms, sinusoid


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
