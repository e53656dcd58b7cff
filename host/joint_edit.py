"""The method at one evaluation of the sampler: keyframes edited jointly, and every frame from their tokens (paper, section 4.2)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tokenflow_ops import Neighbours, Windows, carry
from .layers import injected_attention
from .memory import is_oom, replaces_attention
from .passes import Bank, KeyframePass, PropagationPass
from .patching import ModelCall
from .shards import ALONE, together

if TYPE_CHECKING:
    from .editing import EditRun, Moment

CARRIED_AT_ONCE = 64


def tokenflow(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """The denoised frames for each list of conditionings. Where memory runs out, fewer keyframes are edited together, for the run."""
    while True:
        try:
            return JointEdit(run, call, now).denoised
        except Exception as error:
            together = min(run.jointly, len(now.matches.keyframes))
            if together == 1 or not is_oom(error):
                raise
            run.jointly = together // 2
            logging.warning("%s: out of memory, on with %d keyframes that attend to each other.", run.node, run.jointly)


def carry_denoised(run: EditRun, now: Moment, denoised: Tensor) -> Tensor:
    """Early in the schedule, what the model foresees is itself made of the keyframes' along the finest matches, as its tokens are.

    Not in the paper. Convolutions see every frame's own noise and decide on their own what stands where; later steps only draw it out.
    Late in the schedule copies of whole patches would be seen, so what is left of the frames' own detail stays.
    """
    if not _carries(run, now):
        return denoised
    keyframes = denoised[now.matches.keyframes.to(denoised.device)]
    finest = run.features.finest
    grid = run.features.grid(finest)
    carried = torch.empty_like(denoised)
    for frames in torch.arange(len(denoised)).split(CARRIED_AT_ONCE):  # its indices are larger than the latents
        part = carry(keyframes, now.matches.near.of(frames), now.matches.tokens(finest, frames), grid)
        carried[frames.to(carried.device)] = part
    return carried


def _carries(run: EditRun, now: Moment) -> bool:
    return now.place < round(run.edit.carry_until * now.steps)


@dataclass
class JointKeyframes:
    """What a joint pass leaves: `bank` and the source's ResBlock features `hidden` for frames, `seen`, on its host alone, for keyframes."""

    bank: Bank
    hidden: dict[str, Tensor]
    seen: Bank


class JointEdit:
    """One evaluation: windows of keyframes one after the other, each followed by the frames up to its last keyframe.

    Of a window's tokens only the last keyframe's stay for the next one, so that device memory does not grow with the clip. Keyframes are
    not run again among the frames: what they would be given there are the very tokens of their own. And as long as the denoised frames are
    carried (see `carry_denoised`), frames between keyframes are not run at all: nothing of them would be left.

    denoised: (N, C, h, w) for each list of conditionings.
    """

    def __init__(self, run: EditRun, call: ModelCall, now: Moment) -> None:
        self.run, self.call, self.now = run, call, now
        self.keyframes = now.matches.keyframes
        self.denoised = [torch.zeros_like(call.x) for _ in call.conds]
        # Guidance that replaces self-attention (SAG) reads what it saw in the last pass, and takes it for all frames.
        self.at_once = replaces_attention(run.model)
        self.shards = ALONE if self.at_once else together()
        self.propagated: list[Tensor] = []  # frames that were run here
        self.deep = run.carries_deep(call)
        self.carries = _carries(run, now)
        self.whole = self._whole()
        self._edit(Windows.of(len(self.keyframes), len(self.keyframes) if self.at_once else run.jointly))
        if self.carries:
            self.denoised = [carry_denoised(run, now, part) for part in self.denoised]

    def _edit(self, windows: Windows) -> None:
        nothing: frozenset[str] = frozenset()
        # Of a deep edit frames take attention's output of the layers at full resolution alone; of carried ones nothing.
        asked = nothing if self.carries and not self.at_once else self.run.shallow_layers if self.deep else None
        anchors = self._jointly(windows.anchors, {}, nothing, len(windows.anchors)).seen if len(windows.anchors) else {}
        last: JointKeyframes | None = None
        for own in windows.own:
            context = _joined(_rows(anchors, windows.elsewhere(own)), last.seen if last else {})
            before, last = last, self._jointly(torch.arange(own.start, own.stop), context, asked, windows.tail)
            if not self.carries or self.at_once:
                self._propagate(own, before, last)
        if self.shards is not ALONE:
            self._exchange()

    def _exchange(self) -> None:
        """Gives the other hosts the frames that were run here, and takes theirs."""
        frames = torch.cat([torch.empty(0, dtype=torch.int64), *self.propagated])
        own = frames, [whole[frames.to(whole.device)] for whole in self.denoised]
        for theirs, denoised in self.shards.gather(own):
            self._keep(theirs, denoised)

    def _jointly(self, positions: Tensor, context: Bank, banked: frozenset[str] | None, remembered: int) -> JointKeyframes:
        """The joint pass of some keyframes, on one host for all."""
        frames, now = self.keyframes[positions], self.now
        seen: Bank = {}

        def edit() -> tuple[Bank, dict[str, Tensor], list[Tensor]]:
            source = self.run.source(self.call, frames, now.injected)
            joint = KeyframePass(frames, source=source, banked=banked, seen=seen, context=context, remembered=remembered)
            denoised = self.call.run(self.run, joint)
            hidden = {} if self.deep or self._every_frames_own else {name: source[name] for name in now.hidden}
            return joint.bank, hidden, denoised

        bank, hidden, denoised = self.shards.once(edit)
        self._keep(frames, denoised)
        return JointKeyframes(bank, hidden, seen)

    def _propagate(self, own: range, before: JointKeyframes | None, joint: JointKeyframes) -> None:
        """The frames whose future keyframe is one of the window's, from its tokens and those of the last keyframe before."""
        near, now, run, call = self.now.matches.near, self.now, self.run, self.call
        first = own.start - (before is not None)
        bank, hidden = joint.bank, joint.hidden
        if before:
            bank = _joined(_rows(before.bank, slice(-1, None)), bank)
            hidden = {name: torch.cat([before.hidden[name][-1:].to(part.device), part]) for name, part in hidden.items()}
        frames = ((near.future >= own.start) & (near.future < own.stop)).nonzero().flatten()
        if not self.at_once:
            frames = frames[~self.whole[frames]]
        finest = (run.features.finest[-1], run.features.grid(run.features.finest)) if self.deep else None

        def work(part: Tensor) -> None:
            nearby = near.of(part).counted_from(first)
            tokens = partial(run.edit.correspondences.tokens, now.step, frames=part)
            source = {} if finest else self._source(hidden, nearby, part)
            propagation = PropagationPass(part, source=source, bank=bank, near=nearby, tokens=tokens, finest=finest)
            self._keep(part, call.run(run, propagation))
            self.propagated.append(part)

        run.in_parts(call, self.shards.own(frames), work)

    @property
    def _every_frames_own(self) -> bool:
        """Whether frames take the source's features as they are, not carried from keyframes."""
        return self.run.every_level or not self.now.hidden

    def _source(self, hidden: dict[str, Tensor], near: Neighbours, frames: Tensor) -> dict[str, Tensor]:
        """The source's ResBlock features of some frames: the keyframes' along the matches, unless features of every level are asked for.

        The source carried along its own matches is nearly the source, and the keyframes' features are computed anyway: it takes neither the
        time nor the memory for all frames at all steps. Edits were the same within a thousandth of their warp error.
        """
        if self._every_frames_own:
            return self.run.source(self.call, frames, self.now.hidden)
        tokens = self.run.edit.correspondences.tokens(self.now.step, injected_attention(self.run.edit.layers)[0], frames)
        return {name: carry(part, near, tokens, (part.shape[2], part.shape[3])) for name, part in hidden.items()}

    def _whole(self) -> Tensor:
        """(N,) bool: the keyframes that keep their own tokens and nothing else."""
        near, own = self.now.matches.near, torch.arange(len(self.keyframes))
        kept = (near.past[self.keyframes] == own) & (near.future[self.keyframes] == own)
        whole = torch.zeros(len(near.past), dtype=torch.bool)
        whole[self.keyframes[kept]] = True
        return whole

    def _keep(self, frames: Tensor, denoised: list[Tensor]) -> None:
        for whole, part in zip(self.denoised, denoised, strict=True):
            whole[frames.to(whole.device)] = part


def _rows(bank: Bank, rows: Tensor | slice) -> Bank:
    """The chosen keyframes' tokens, copied so that the others' memory is free."""

    def chosen(tokens: Tensor) -> Tensor:
        return tokens[rows].clone() if isinstance(rows, slice) else tokens[rows.to(tokens.device)]

    return {key: chosen(held) if isinstance(held, Tensor) else [chosen(part) for part in held] for key, held in bank.items()}


def _joined(*banks: Bank) -> Bank:
    """Keyframes' tokens of several banks, in their order; banks without any are left out."""
    banks = tuple(bank for bank in banks if bank)
    if len(banks) < 2:
        return banks[0] if banks else {}

    def join(parts: tuple) -> object:
        if isinstance(parts[0], Tensor):
            return torch.cat([part.to(parts[0].device) for part in parts])
        return [join(sides) for sides in zip(*parts, strict=True)]

    return {key: join(tuple(bank[key] for bank in banks)) for key in banks[0]}
