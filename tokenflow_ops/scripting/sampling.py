"""Stage 2 on a pipeline: the edit by the deterministic DDIM (Euler) sampler from the inverted noise (paper, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..correspondence import Correspondences, carry
from ..injection import Injection
from ..keyframes import JOINT_KEYFRAMES, Windows
from ..propagation import CARRY_UNTIL, DEEP_FEATURES, PROPAGATIONS
from .denoiser import Denoiser, embed
from .layers import deep_blocks, injected_attention, injected_features, replaced
from .passes import DEEP, Bank, FramesPass, KeyframePass

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PLUG_AND_PLAY = Injection()


@torch.no_grad()
def sample_edit(
    pipe: StableDiffusionPipeline,
    correspondences: Correspondences,
    prompt: str | Tensor,
    negative_prompt: str | Tensor = "",
    guidance_scale: float = 7.5,
    injection: Injection | None = PLUG_AND_PLAY,
    propagation: str = DEEP_FEATURES,
    carry_until: float = CARRY_UNTIL,
    attended_keyframes: int = JOINT_KEYFRAMES,
    frames_per_pass: int = 8,
) -> Tensor:
    """The edited latents (N, C, h, w) float32, with the node TokenFlow Sampler's choices and defaults.

    prompt, negative_prompt: words, or their embeddings (1, T, D). injection: Plug-and-Play, None for none.
    propagation: what frames between keyframes take from them, one of PROPAGATIONS.
    carry_until: share of the schedule in which the denoised latents are made of the keyframes' too.
    attended_keyframes: how many are edited together; a clip with more is edited in windows. frames_per_pass: of the others in a UNet call.
    Raises: ValueError for another propagation.
    """
    if propagation not in PROPAGATIONS:
        raise ValueError(f"propagation must be one of {PROPAGATIONS}, got {propagation!r}")
    prompts = [prompt] if guidance_scale == 1 else [prompt, negative_prompt]
    words = torch.cat([embed(pipe, each) for each in prompts])
    deep = propagation == DEEP_FEATURES
    denoise = Denoiser.of(pipe)
    edit = _Edit(denoise, words, guidance_scale, correspondences, injection, deep, carry_until, attended_keyframes, frames_per_pass)
    inversion = correspondences.features.inversion
    x, sigmas = inversion.latents[0].to(pipe.device), inversion.sigmas.to(pipe.device)
    for step in pipe.progress_bar(range(len(sigmas) - 1)):
        x = x + (x - _Step(edit, step, x).denoised) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
    return x


@dataclass(frozen=True)
class _Edit:
    """As of `sample_edit`. words: (R, T, D), the prompt's and, with guidance, the negative prompt's."""

    denoise: Denoiser
    words: Tensor
    guidance_scale: float
    correspondences: Correspondences
    injection: Injection | None
    deep: bool
    carry_until: float
    attended_keyframes: int
    frames_per_pass: int

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.correspondences.features.shapes)


class _Step:
    """One step: windows of keyframes one after the other, each followed by the frames up to its last keyframe.

    denoised: (N, C, h, w), with guidance.
    """

    def __init__(self, edit: _Edit, step: int, x: Tensor) -> None:
        self.edit, self.step, self.x = edit, step, x
        self.features, self.matches = edit.correspondences.features, edit.correspondences.steps[step]
        inversion = self.features.inversion
        self.place, self.steps = inversion.skipped + step, inversion.steps
        self.sigma = inversion.sigmas[step].to(x.device)
        self.deep = deep_blocks(edit.denoise.unet)
        self.finest = self.features.finest[-1], self.features.grid(self.features.finest)
        self.carries = self.place < round(edit.carry_until * self.steps)
        self.denoised = torch.zeros_like(x)
        self._edit_windows()
        if self.carries:
            tokens = self.matches.tokens(self.features.finest)
            self.denoised = carry(self.denoised[self.matches.keyframes.to(x.device)], self.matches.near, tokens, self.finest[1])

    def _edit_windows(self) -> None:
        windows = Windows.of(len(self.matches.keyframes), self.edit.attended_keyframes)
        asked = frozenset[str]() if self.carries else frozenset(self.edit.layers)
        if self.edit.deep and not self.carries:
            below = tuple(f"{path}." for path in self.deep)
            asked = frozenset((DEEP, *(layer for layer in asked if not layer.startswith(below))))
        anchors: Bank = {}
        if len(windows.anchors):
            anchors = self._jointly(windows.anchors, {}, frozenset(), len(windows.anchors)).seen
        last: KeyframePass | None = None
        for own in windows.own:
            elsewhere = {layer: tokens[:, windows.elsewhere(own)] for layer, tokens in anchors.items()}
            before, last = last, self._jointly(torch.tensor(own), _joined(elsewhere, last.seen if last else {}), asked, windows.tail)
            if not self.carries:
                self._propagate(own, before, last)

    def _jointly(self, positions: Tensor, context: Bank, banked: frozenset[str], remembered: int) -> KeyframePass:
        """The keyframes at these positions among all."""
        frames = self.matches.keyframes[positions]
        joint = KeyframePass(frames, len(self.edit.words), self._source(frames), context, banked, remembered)
        self._keep(frames, joint)
        return joint

    def _source(self, frames: Tensor) -> dict[str, Tensor]:
        """What Plug-and-Play takes from the source at this step, by layer."""
        injection, names, found = self.edit.injection, list[str](), dict[str, Tensor]()
        if injection is not None and injection.attention_at(self.place, self.steps):
            names += injected_attention(self.edit.layers, injection.layers)
        if injection is not None and injection.features_at(self.place, self.steps):
            names.append(injected_features(self.edit.layers))
        if names:
            self.features.compute(names, [self.step], lambda step, layers: found.update(layers), frames=frames)
        return found

    def _propagate(self, own: range, before: KeyframePass | None, joint: KeyframePass) -> None:
        """The frames whose future keyframe is one of the window's, but keyframes, which have their own tokens already."""
        near, keyframes = self.matches.near, self.matches.keyframes
        bank, first = joint.bank, own.start
        hidden = {name: kept for name, kept in joint.source.items() if name not in self.edit.layers and not self.edit.deep}
        if before is not None:
            bank, first = _joined({name: kept[:, -1:] for name, kept in before.bank.items()}, bank), first - 1
            hidden = {name: torch.cat([before.source[name][-1:], kept]) for name, kept in hidden.items()}
        whole = keyframes[near.past[keyframes] == near.future[keyframes]]
        following = (near.future >= own.start) & (near.future < own.stop)
        following[whole] = False
        frames = following.nonzero().flatten()
        for part in frames.split(self.edit.frames_per_pass) if len(frames) else ():
            nearby = near.of(part).counted_from(first)
            tokens = partial(self.edit.correspondences.tokens, self.step, frames=part)
            # The source's features are carried as well: nearly what they would be, at no cost.
            sides = tokens(injected_attention(self.edit.layers)[0])
            source = {name: carry(kept, nearby, sides, (kept.shape[2], kept.shape[3])) for name, kept in hidden.items()}
            self._keep(part, FramesPass(bank, nearby, tokens, source, self.finest if self.edit.deep else None))

    def _keep(self, frames: Tensor, work: KeyframePass | FramesPass) -> None:
        """Runs a pass over its frames and keeps what it finds."""
        rows = frames.to(self.x.device)
        with replaced(self.edit.denoise.unet, work.forwards(self.edit.layers, self.deep)):
            found = self.edit.denoise(self.x[rows], self.sigma, self.edit.words)
        prompted, plain = found[0], found[-1]
        self.denoised[rows] = prompted if len(found) == 1 else plain + (prompted - plain) * self.edit.guidance_scale


def _joined(first: Bank, second: Bank) -> Bank:
    """Keyframes' tokens of both, in this order."""
    return {name: torch.cat([bank[name] for bank in (first, second) if name in bank], 1) for name in first | second}
