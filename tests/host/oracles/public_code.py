"""The rules of the method's public code (omerbt/TokenFlow, commit 5dd6a69) written down a second
time, as it runs them: three rows at once.

A batch is [source frames, negative prompt's frames, edit prompt's frames]. Shares no code with the
pack. See `oracle.py` for the notation. Frames beyond the last whole chunk, which the public code
drops, are a shorter chunk by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import torch
from torch import Tensor

from .source import TIE
from .unet import injected, replaced, softmax_attention, within


@dataclass
class ReferenceEdit:
    """path: (S+1, N, C, h, w) of the inversion. keyframes: for every step one frame number per
    chunk of `interval` frames.

    proposals: for every step and layer (previous, own) matches (N, P) to break ties with that
    float32 cannot decide.
    """

    patcher: Any
    path: Tensor
    sigmas: Tensor
    source: Tensor
    positive: Tensor
    negative: Tensor
    keyframes: list[list[int]]
    interval: int
    cfg: float
    attention_until: float
    features_until: float
    proposals: Sequence[Mapping[str, tuple[Tensor, Tensor]]]
    step: int = 0
    pivots: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    ties: int = 0

    @torch.no_grad()
    def run(self) -> Tensor:
        """The edited latents (N, C, h, w), by Euler steps from the inverted latents."""
        x, steps = self.path[0], len(self.sigmas) - 1
        for self.step in range(steps):
            self.pivots = {}
            self.rows(x, self.keyframes[self.step], self.pivotal)
            noise = []
            for chunk, first in enumerate(range(0, len(x), self.interval)):
                frames = list(range(first, min(first + self.interval, len(x))))
                noise.append(
                    self.rows(
                        x,
                        frames,
                        lambda *of, chunk=chunk, frames=frames: self.propagated(chunk, frames, *of),
                    )
                )
            x = x + (self.sigmas[self.step + 1] - self.sigmas[self.step]) * torch.cat(noise)
        return x

    def rows(self, x: Tensor, frames: list[int], attention: Any) -> Tensor:
        """One call of the UNet for some frames in three rows; the guided noise of the frames."""
        count, sigma = len(frames), self.sigmas[self.step]

        def from_source(hidden: Tensor) -> Tensor:
            return hidden[:count].repeat(3, 1, 1, 1)

        inject = from_source if within(self.features_until, sigma) else None
        batch = torch.cat([self.path[self.step][frames], x[frames], x[frames]])
        prompts = torch.cat(
            [prompt.expand(count, -1, -1) for prompt in (self.source, self.negative, self.positive)]
        )
        timestep = (
            self.patcher.model.model_sampling.timestep(sigma.reshape(1)).float().expand(len(batch))
        )
        unet = self.patcher.model.diffusion_model
        with replaced(unet, attention, inject):
            noise = unet(
                batch / (sigma**2 + 1) ** 0.5, timestep, context=prompts, transformer_options={}
            )
        _, negative, positive = noise.chunk(3)
        return negative + self.cfg * (positive - negative)

    def pivotal(self, layer: str, module: Any, tokens: Tensor) -> Tensor:
        """The keyframes: the source row by itself, the edit's rows with extended attention and, at
        first, the source's queries and keys.
        """
        count = len(tokens) // 3
        q, k, v = (
            project(tokens).unflatten(0, (3, count))
            for project in (module.to_q, module.to_k, module.to_v)
        )
        if injected(layer) and within(self.attention_until, self.sigmas[self.step]):
            q, k = q[:1].expand(3, -1, -1, -1), k[:1].expand(3, -1, -1, -1)
        out = [[softmax_attention(q[0, i], k[0, i], v[0, i], module.heads) for i in range(count)]]
        for row in (1, 2):
            keys, values = torch.cat(list(k[row])), torch.cat(list(v[row]))
            out.append(
                [softmax_attention(q[row, i], keys, values, module.heads) for i in range(count)]
            )
        outputs = module.to_out(torch.stack([torch.stack(row) for row in out]))
        self.pivots[layer] = tokens[:count], outputs
        return outputs.flatten(0, 1)

    def propagated(
        self, chunk: int, frames: list[int], layer: str, module: Any, tokens: Tensor
    ) -> Tensor:
        """A chunk's frames, the source row among them, from the outputs of its own and the previous
        chunk's keyframe.
        """
        known, outputs = self.pivots[layer]
        proposed = self.proposals[self.step][layer]
        rows = []
        for row in range(3):
            for position, frame in enumerate(frames):
                own = self.match(tokens[position], known[chunk], proposed[1][frame])
                carried = outputs[row, chunk][own]
                if chunk > 0:
                    centre = chunk * self.interval + self.interval // 2
                    d1, d2 = abs(frame - centre), abs(frame - (centre - self.interval))
                    weight = 1 / (1 + exp(-d2 / (d1 + d2)))
                    previous = self.match(tokens[position], known[chunk - 1], proposed[0][frame])
                    carried = weight * carried + (1 - weight) * outputs[row, chunk - 1][previous]
                rows.append(carried)
        return torch.stack(rows)

    def match(self, tokens: Tensor, keyframe: Tensor, proposed: Tensor) -> Tensor:
        """(P,) the keyframe's token closest to every token by cosine distance; the proposed one
        where both are as close.
        """
        similarity = (tokens / tokens.norm(dim=-1, keepdim=True)) @ (
            keyframe / keyframe.norm(dim=-1, keepdim=True)
        ).T
        best = similarity.argmax(-1)
        tied = similarity.gather(1, proposed[:, None]) >= similarity.gather(1, best[:, None]) - TIE
        self.ties += int((tied[:, 0] & (best != proposed)).sum())
        return torch.where(tied[:, 0], proposed, best)
