"""TokenFlow written down a second time, slowly, straight from the formulas: what the pack's result
is compared with.

The model is in `unet`, stage 1 in `source`, the edit here. Shares no code with the pack; loops
over frames.

Names: N frames, k keyframes, S steps, P tokens of width C in a layer; "layer" is the name of an
attn1 module in the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .source import Source, closest, look_at_source, match
from .unet import (
    PNP_BLOCKS,
    Prompt,
    epsilon,
    injected,
    own_attention,
    passed,
    replaced,
    softmax_attention,
    within,
)


@dataclass
class Edit:
    """Stage 2. Attributes as the words of the method.

    path: (S+1, N, C, h, w) of `invert`. source, positive, negative: prompts, or their tokens (1,
    tokens, width). keyframes: for every step the ascending frame numbers. attention_until,
    features_until: Plug-and-Play's shares of the schedule. proposals: for every step and layer
    (past, future) matches (N, P) to break ties with, see `match`. consistency: "tokenflow", "joint
    attention" (every frame's queries against the keyframes' keys and values) or "per frame".
    pnp_blocks: the decoder blocks whose queries and keys Plug-and-Play takes from the source, the
    first of them with its ResBlock. deep: whether frames take what comes up from below full
    resolution from the keyframes, as they take tokens. coarse: whether a layer is matched on the
    decoder's first layers of its and all coarser resolutions. windows: TokenFlow's in a clip of
    many keyframes: positions of the anchors, of every window's own keyframes, and of those that a
    window attends to beside its own and the anchors. carry_until: TokenFlow's share of SD's
    schedule, by its noise, in which denoised frames are carried as tokens are. guides: whether,
    after that share, what the negative prompt differs by is carried from the keyframes, by vote.
    lean: whether it is, and every second step is done with what the step before it has kept.
    repeats: a share of SD's schedule within which that is so, too, and how many of its 999 steps
    may lie between a step and one done with what it has kept.
    likeness: whether a token follows the keyframe more that it is likelier in. merged_from: in
    layers of so many tokens a keyframe sees 2 x 2 tokens of every other one as their mean. looked:
    what the source shows at a step, for those who have looked at it before.
    """

    patcher: Any
    path: Tensor
    sigmas: Tensor
    source: Tensor | Prompt
    positive: Tensor | Prompt
    negative: Tensor | Prompt
    keyframes: list[list[int]]
    cfg: float = 7.5
    attention_until: float = 0.0
    features_until: float = 0.0
    consistency: str = "tokenflow"
    proposals: Sequence[Mapping[str, tuple[Tensor, Tensor]]] = ()
    pnp_blocks: Sequence[int] = PNP_BLOCKS
    carry_until: float = 0.2
    windows: tuple[list[int], list[list[int]], list[list[int]]] | None = None
    deep: bool = False
    coarse: bool = False
    guides: bool = False
    lean: bool = False
    repeats: tuple[float, float] = (0.0, 0.0)
    likeness: bool = True
    merged_from: float = float("inf")
    looked: Callable[[int], Source] | None = None
    held: tuple | None = None

    @torch.no_grad()
    def run(self) -> Tensor:
        """The edited latents (N, C, h, w), by Euler steps from the inverted latents."""
        x = self.path[0]
        for j in range(len(self.sigmas) - 1):
            x = x + (self.sigmas[j + 1] - self.sigmas[j]) * self.guided(x, j)
        return x

    def guided(self, x: Tensor, step: int) -> Tensor:
        """The noise that a step removes, with guidance."""
        sigma = self.sigmas[step]
        if self.held is not None:
            return self.again(x, sigma)
        known = self.known(step)
        frames = self.blends(known, step) if self.consistency == "tokenflow" else {}
        ask = known.phi if within(self.attention_until, sigma) else {}
        hidden = known.hidden if within(self.features_until, sigma) else None
        kept: dict = {}
        cond = self.noise(x, sigma, self.positive, self.keyframes[step], frames, ask, hidden, kept)
        uncond = self.noise(x, sigma, self.negative, self.keyframes[step], frames, ask, hidden)
        last = step == len(self.sigmas) - 2
        carries = self.carry_until == 1 or (within(self.carry_until, sigma) and not last)
        if (self.guides or self.lean) and not carries:
            carried = self.carried(uncond - cond, frames, step, voted=True)
            until, apart = self.repeats
            follows = not last and passed(self.sigmas[step + 1]) - passed(sigma) <= apart
            if self.lean or (within(until, sigma) and follows):
                self.held = frames, kept, sigma * carried
            for i in set(range(len(x))) - set(self.keyframes[step]):
                uncond[i] = cond[i] + carried[i]
        noise = uncond + self.cfg * (cond - uncond)
        if self.consistency != "tokenflow" or not carries:
            return noise
        return (x - self.carried(x - sigma * noise, frames, step)) / sigma

    def again(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The noise that a step removes with what the one before it has kept."""
        assert self.held is not None
        frames, kept, difference = self.held
        self.held = None
        cond = self.noise(x, sigma, self.positive, [], frames, {}, None, kept)
        return cond + (1 - self.cfg) * difference / sigma

    def carried(
        self, clean: Tensor, blends: dict[str, list], step: int, voted: bool = False
    ) -> Tensor:
        """Every pixel of the clean latents (N, C, h, w) from the matched
        tokens of the two keyframes. voted: as the mean of what the matches around say.
        """
        most = max(len(recipes[0][2]) for recipes in blends.values())
        recipes = [recipes for recipes in blends.values() if len(recipes[0][2]) == most][-1]
        height, width = clean.shape[2:]
        patch = 1 if most == height * width else 2
        return torch.stack(
            [self.made_of(clean[self.keyframes[step]], recipe, patch, voted) for recipe in recipes]
        )

    def made_of(self, keyframes: Tensor, recipe: tuple, patch: int, voted: bool = False) -> Tensor:
        """One frame (C, h, w) of the keyframes' pixels (k, C, h, w): each at its own place within
        the matched token of patch x patch, or the mean over the nine tokens there if the frame's
        moved as each of its neighbours does.
        """
        past, future, past_match, future_match, weight = recipe
        made = torch.empty_like(keyframes[0])
        height, width = made.shape[1:]
        rows, columns = -(-height // patch), -(-width // patch)
        ways = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)] if voted else [(0, 0)]
        for y in range(height):
            for x in range(width):
                token, sides = y // patch * columns + x // patch, []
                for keyframe, tokens in ((past, past_match), (future, future_match)):
                    votes = []
                    for down, right in ways:
                        row, column = divmod(int(tokens[token]), columns)
                        beside = y // patch + down, x // patch + right
                        if 0 <= beside[0] < rows and 0 <= beside[1] < columns:
                            there = divmod(int(tokens[beside[0] * columns + beside[1]]), columns)
                            there = there[0] - down, there[1] - right
                            if 0 <= there[0] < rows and 0 <= there[1] < columns:
                                row, column = there
                        row, column = (
                            min(row * patch + y % patch, height - 1),
                            min(column * patch + x % patch, width - 1),
                        )
                        votes.append(keyframes[keyframe, :, row, column])
                    sides.append(torch.stack(votes).mean(0))
                share = weight[token]
                made[:, y, x] = (1 - share) * sides[0] + share * sides[1]
        return made

    def known(self, step: int) -> Source:
        """What the source shows at a step."""
        if self.looked is not None:
            return self.looked(step)
        return look_at_source(
            self.patcher, self.path[step], self.sigmas[step], self.source, self.pnp_blocks[0]
        )

    def blends(self, known: Source, step: int) -> dict[str, list]:
        """For every layer and frame: positions of its two keyframes, its matches to them, and the
        future one's weight for each token.
        """
        keyframes, recipes = self.keyframes[step], {}
        for layer, phi in (self.described(known.phi) if self.coarse else known.phi).items():
            recipes[layer] = []
            proposed = self.proposals[step][layer] if self.proposals else (None, None)
            for frame in range(len(phi)):
                past, future, weight = closest(frame, keyframes)
                ties = [None if part is None else part[frame] for part in proposed]
                matches = match(phi, frame, past, ties[0]), match(phi, frame, future, ties[1])
                shares = torch.full((phi.shape[1],), float(weight))
                if self.likeness and 0 < weight < 1:
                    alike = [
                        torch.nn.functional.cosine_similarity(phi[frame], phi[key][found], dim=-1)
                        for key, found in zip((past, future), matches, strict=True)
                    ]
                    before, after = (
                        (1 - weight) * torch.exp((alike[0] - alike[1]) / 0.05),
                        weight,
                    )
                    shares = after / (before + after)
                recipes[layer].append(
                    (keyframes.index(past), keyframes.index(future), *matches, shares)
                )
        return recipes

    def described(self, phi: dict[str, Tensor]) -> dict[str, Tensor]:
        """For every layer the unit tokens of the decoder's first layers of its and coarser
        resolutions, enlarged and joined.
        """
        firsts: dict[int, str] = {}
        for layer in phi:
            if layer.startswith("output_blocks."):
                firsts.setdefault(phi[layer].shape[1], layer)
        grids, side = {}, tuple(self.path.shape[-2:])
        while side[0] * side[1] not in grids:
            grids[side[0] * side[1]] = side
            side = tuple((length + 1) // 2 for length in side)
        found = {}
        for layer, own in phi.items():
            tokens = own.shape[1]
            parts = []
            for count in sorted(firsts):
                if count > tokens or tokens not in firsts:
                    continue
                part = phi[firsts[count]]
                part = part / part.norm(dim=-1, keepdim=True)
                if count < tokens:
                    plane = part.transpose(1, 2).reshape(len(part), -1, *grids[count])
                    plane = torch.nn.functional.interpolate(plane, grids[tokens], mode="bilinear")
                    part = plane.flatten(2).transpose(1, 2)
                    part = part / part.norm(dim=-1, keepdim=True)
                parts.append(part)
            found[layer] = torch.cat(parts, -1) if parts else own
        return found

    def noise(
        self,
        x: Tensor,
        sigma: Tensor,
        prompt: Tensor | Prompt,
        keyframes: list[int],
        blends: dict,
        ask: dict[str, Tensor],
        hidden: Tensor | None,
        kept: dict | None = None,
    ) -> Tensor:
        """The noise of all frames for one prompt.

        ask: the source's phi if queries and keys are injected. hidden: its ResBlock branch if that
        is. blends: as from `blends`. kept: is given what the keyframes leave, or has it already.
        """
        kept = {} if kept is None else kept

        def run(frames: list[int], attention: Callable, upsample: Callable | None = None) -> Tensor:
            resblock = None if hidden is None else lambda branch: hidden[frames]
            with replaced(
                self.patcher.model.diffusion_model,
                attention,
                resblock,
                self.pnp_blocks[0],
                upsample,
            ):
                return epsilon(self.patcher, x[frames], sigma, prompt, frames)

        if kept:
            pass
        elif self.consistency != "per frame" and self.windows is None:
            run(keyframes, self.jointly(keyframes, ask, kept), partial(self.keep_deep, kept))
        elif self.windows is not None:
            self.in_windows(run, keyframes, ask, kept)
        return torch.cat(
            [
                run([i], self.frame(i, blends, ask, kept), self.deep_of(i, blends, kept))
                for i in range(len(x))
            ]
        )

    def keep_deep(self, kept: dict, hidden: Tensor) -> Tensor:
        kept["deep"] = torch.cat([*([kept["deep"]] if "deep" in kept else []), hidden])
        return hidden

    def deep_of(self, i: int, blends: dict, kept: dict) -> Callable | None:
        """What comes up from below full resolution for frame i, if that is the keyframes'."""
        if not self.deep or not blends:
            return None
        most = max(len(recipes[0][2]) for recipes in blends.values())
        recipe = [recipes for recipes in blends.values() if len(recipes[0][2]) == most][-1][i]
        height, width = kept["deep"].shape[2:]
        return lambda hidden: self.made_of(
            kept["deep"], recipe, 1 if most == height * width else 2
        )[None]

    def in_windows(
        self, run: Callable, keyframes: list[int], ask: dict[str, Tensor], kept: dict
    ) -> None:
        """The keyframes window by window; leaves the outputs of all in `kept`."""
        assert self.windows is not None
        anchors, windows, before = self.windows
        anchored: dict = {}
        run(
            [keyframes[a] for a in anchors],
            self.jointly([keyframes[a] for a in anchors], ask, anchored),
        )
        # Keys and values of a layer and keyframe in its own window.
        seen: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for own, tail in zip(windows, before, strict=True):
            left: dict = {}
            others = [position for position in anchors if position not in [*own, *tail]]

            def more(
                layer: str, others: list[int] = others, tail: list[int] = tail
            ) -> list[tuple[Tensor, Tensor]]:
                apart = [side.chunk(len(anchors)) for side in anchored[layer][:2]]
                from_anchors = [
                    (apart[0][anchors.index(position)], apart[1][anchors.index(position)])
                    for position in others
                ]
                return [*from_anchors, *(seen[layer, position] for position in tail)]

            run(
                [keyframes[p] for p in own],
                self.jointly([keyframes[p] for p in own], ask, left, more),
                partial(self.keep_deep, kept),
            )
            for layer, (keys, values, outputs) in left.items():
                for position, *sides in zip(
                    own, keys.chunk(len(own)), values.chunk(len(own)), strict=True
                ):
                    seen[layer, position] = sides[0], sides[1]
                known = kept.get(layer)
                kept[layer] = (
                    keys,
                    values,
                    outputs if known is None else torch.cat([known[2], outputs]),
                )

    def jointly(
        self,
        keyframes: list[int],
        ask: dict[str, Tensor],
        kept: dict,
        more: Callable = lambda layer: [],
    ) -> Callable:
        """Extended attention among the keyframes;
        leaves (keys, values, outputs) of every layer in `kept`.

        more: for a layer keys and values of others to attend to as well.
        """

        def attention(layer: str, module: Any, tokens: Tensor) -> Tensor:
            asking = ask[layer][keyframes] if ask and injected(layer, self.pnp_blocks) else tokens
            keys = torch.cat([module.to_k(frame) for frame in asking])
            values = torch.cat([module.to_v(frame) for frame in tokens])
            apart = [*zip(keys.chunk(len(tokens)), values.chunk(len(tokens)), strict=True)]
            everyone = [*apart, *more(layer)]
            outputs = []
            for i, frame in enumerate(asking):
                seen = [
                    sides if j == i else [self.merged(side) for side in sides]
                    for j, sides in enumerate(everyone)
                ]
                all_keys, all_values = (torch.cat(side) for side in zip(*seen, strict=True))
                outputs.append(
                    module.to_out(
                        softmax_attention(module.to_q(frame), all_keys, all_values, module.heads)
                    )
                )
            kept[layer] = keys, values, torch.stack(outputs)
            return kept[layer][2]

        return attention

    def merged(self, side: Tensor) -> Tensor:
        """Keys or values (P, C) of a keyframe as another one sees them."""
        if len(side) < self.merged_from:
            return side
        rows, columns = self.path.shape[-2:]
        while rows * columns > len(side):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return torch.stack(
            [
                torch.stack(
                    [
                        side[row * columns + column]
                        for row in range(y, min(y + 2, rows))
                        for column in range(x, min(x + 2, columns))
                    ]
                ).mean(0)
                for y in range(0, rows, 2)
                for x in range(0, columns, 2)
            ]
        )

    def frame(self, i: int, blends: dict, ask: dict[str, Tensor], kept: dict) -> Callable:
        """What the self-attention layers answer for frame i."""

        def attention(layer: str, module: Any, tokens: Tensor) -> Tensor:
            asking = ask[layer][i] if ask and injected(layer, self.pnp_blocks) else tokens[0]
            if self.consistency == "per frame":
                return own_attention(module, tokens[0], asking)[None]
            keys, values, base = kept[layer]
            if self.consistency == "joint attention":
                return module.to_out(
                    softmax_attention(module.to_q(asking), keys, values, module.heads)
                )[None]
            past, future, past_match, future_match, weight = blends[layer][i]
            weight = weight[:, None]
            return (weight * base[future][future_match] + (1 - weight) * base[past][past_match])[
                None
            ]

        return attention
