"""One step of an edit, for all frames of a clip (paper, section 4.2).

Keyframes are edited jointly, window by window, and every frame from their tokens. This is
the method's one loop. It knows neither ComfyUI nor diffusers: what evaluates the model is
behind `Denoiser`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .carrying.denoised import carry_changes, carry_denoised
from .features.source_features import SourceFeatures
from .guidance import carry_guidance
from .keyframes import Neighbours, Windows, shot_windows
from .matching.correspondence import Correspondences, StepMatches, carry
from .passes import Bank, KeyframePass, Pass, PropagationPass
from .propagation import CHANGES, FEATURES
from .shards import ALONE, Shards

T = TypeVar("T")
# Where attention among keyframes is dear, and four tokens side by side are much alike.
MERGED_FROM = 1024
NOTHING: frozenset[str] = frozenset()


class Denoiser(Protocol):
    """Evaluates the model on a clip's noisy frames at one noise level.

    It is what an adapter offers to the method.
    """

    @property
    def x(self) -> Tensor:
        """The noisy frames (N, C, h, w)."""

    @property
    def lists(self) -> int:
        """How many lists of conditionings (prompt, negative prompt) the model is asked for."""

    def run(self, work: Pass, lists: int | None = None) -> list[Tensor]:
        """Denoises a pass's frames.

        Args:
            work: The pass: its n frames, and what the model's layers do with them.
            lists: For how many of the lists of conditionings, the first ones; None for all.

        Returns:
            For each of these lists the denoised frames (n, C, h, w).
        """

    def source(self, frames: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Looks up the source's features of some frames at this noise level.

        Args:
            frames: Frame numbers, (n,).
            names: Paths of the layers.

        Returns:
            By layer the tokens (n, P, C) or hidden features (n, C, h, w).
        """

    def in_parts(self, frames: Tensor, work: Callable[[Tensor], T]) -> list[T]:
        """Does the work for as many frames at once as memory allows, in order.

        Args:
            frames: Frame numbers, (n,).
            work: Called with one part of `frames` after the other.

        Returns:
            What `work` has returned for each part.
        """


@dataclass(frozen=True)
class StepPlan:
    """What one step of an edit is to do.

    Attributes:
        correspondences: The clip's matches.
        step: Step of the inversion, from 0.
        attention: The self-attention layers whose queries and keys are the source's.
        hidden: The layers whose hidden features are the source's.
        hidden_along: By these the self-attention layers along whose matches they are carried to the
            frames; None if every frame has its own.
        shallow: What frames take from keyframes if they take all that lies deeper as a whole (the
            paper takes none of it); None for attention's output of every layer.
        carries: Whether the denoised frames are made of the keyframes' as well
            (see `carry_denoised`).
        jointly: How many keyframes are edited together.
        at_once: Whether every pass must run over all frames, as guidance that reads what attention
            saw in the last pass asks for.
        guides_along: Whether frames between keyframes are denoised for the first list of
            conditionings alone, and what the others differ by is the keyframes', carried along the
            matches (see `carry_guidance`). The paper denoises them for all.
        keeps: What is kept for the next step: what keyframes leave for `edit_again` (FEATURES), the
            denoised frames for `before` (CHANGES), or nothing.
        before: For each list of conditionings the frames (N, C, h, w) as the step before has
            denoised them: those between keyframes are these, changed as keyframes have changed (see
            `carry_changes`). None where they run.
        merges: Whether a keyframe sees the others' tokens merged in layers of MERGED_FROM.
        fits: Tells whether so many bytes fit into main memory, where FEATURES of a clip with
            several windows are kept; if not, nothing is.
    """

    correspondences: Correspondences
    step: int
    attention: tuple[str, ...]
    hidden: tuple[str, ...]
    hidden_along: Mapping[str, str] | None
    shallow: frozenset[str] | None
    carries: bool
    jointly: int
    at_once: bool = False
    guides_along: bool = False
    keeps: str | None = None
    before: list[Tensor] | None = None
    merges: bool = False
    fits: Callable[[int], bool] = lambda size: True

    @property
    def matches(self) -> StepMatches:
        """The step's keyframes and matches."""
        return self.correspondences.steps[self.step]

    @property
    def features(self) -> SourceFeatures:
        """What frames were matched on."""
        return self.correspondences.features

    @property
    def injected(self) -> tuple[str, ...]:
        """All layers that take the source's features."""
        return *self.attention, *self.hidden

    @property
    def windows(self) -> list[tuple[int, Windows]]:
        """Which keyframes are edited together: of each shot its first keyframe, and its windows.

        Nothing crosses a cut, unless every pass must run over all frames.
        """
        keyframes = self.matches.keyframes
        if self.at_once:
            return [(0, Windows.of(len(keyframes), len(keyframes)))]
        return shot_windows(keyframes, self.correspondences.shots, self.jointly)

    @property
    def keyframes_alone(self) -> bool:
        """Whether frames between keyframes do not run: they are carried as a whole."""
        return (self.carries or self.before is not None) and not self.at_once

    @property
    def banked(self) -> frozenset[str] | None:
        """What keyframes keep for frames."""
        return NOTHING if self.keyframes_alone else self.shallow


@dataclass
class Edited:
    """What a step has made.

    Attributes:
        denoised: For each list of conditionings the denoised frames (N, C, h, w).
        left: What the plan keeps for the next step: of the keyframes for `edit_again`, or the
            denoised frames.
    """

    denoised: list[Tensor]
    left: Left | list[Tensor] | None = None


@dataclass
class Left:
    """What a step's keyframes have left for frames.

    Attributes:
        plan: The step's.
        windows: Of every window which keyframes are its own, and what they and the last one before
            them have left.
    """

    plan: StepPlan
    windows: list[tuple[range, _Joint | None, _Joint]]


def edit_step(denoiser: Denoiser, plan: StepPlan, shards: Shards = ALONE) -> Edited:
    """Denoises all frames of a clip consistently.

    Windows of keyframes follow each other, each followed by the frames up to its last keyframe. Of
    a window's tokens only the last keyframe's stay for the next one, so that device memory does not
    grow with the clip. Keyframes are not run again among the frames: there they would only be given
    their own tokens. And where the denoised frames are carried, or their change, frames between
    keyframes are not run at all: nothing of them would be left.

    Args:
        denoiser: Evaluates the model on the clip's N noisy frames.
        plan: What to do.
        shards: The machines that share the clip.

    Returns:
        The denoised frames.
    """
    result = _Result(denoiser, ALONE if plan.at_once else shards)
    for first, windows in plan.windows:
        _edit_shot(result, plan, first, windows)
    result.exchange()
    if plan.carries:
        return Edited([carry_denoised(plan, part) for part in result.denoised])
    if plan.before is not None:
        changed = zip(plan.before, result.denoised, strict=True)
        return Edited([carry_changes(plan, *both) for both in changed])
    if plan.keeps == CHANGES:
        return Edited(result.denoised, [part.clone() for part in result.denoised])
    return Edited(result.denoised, Left(plan, result.windows) if result.windows else None)


def edit_again(denoiser: Denoiser, left: Left, shards: Shards = ALONE) -> Edited:
    """Denoises all frames with what keyframes have left in another step, close to this one.

    Not in the paper. Keyframes take their own tokens and features of that step like all other
    frames: what lies deep changes little from step to step (DeepCache, 2312.00858), and only what
    is left of the model runs.

    Args:
        denoiser: Evaluates the model on the clip's N noisy frames.
        left: What that step's keyframes have left.
        shards: The machines that share the clip, the same as then.

    Returns:
        The denoised frames.
    """
    result = _Result(denoiser, shards)
    for own, before, joint in left.windows:
        _propagate(result, left.plan, own, before, joint, again=True)
    result.exchange()
    return Edited(result.denoised)


def _edit_shot(result: _Result, plan: StepPlan, first: int, windows: Windows) -> None:
    """Denoises a shot, whose keyframes are those from the `first` on."""
    anchors = _Joint()
    last: _Joint | None = None
    if len(windows.anchors):
        few = windows.anchors
        anchors = _edit_keyframes(result, plan, first + few, {}, NOTHING, len(few))
    for own in windows.own:
        context = _joined(_rows(anchors.seen, windows.elsewhere(own)), last.seen if last else {})
        before, positions = last, torch.arange(first + own.start, first + own.stop)
        last = _edit_keyframes(result, plan, positions, context, plan.banked, windows.tail)
        if not plan.keyframes_alone:
            whole = range(first + own.start, first + own.stop)
            _propagate(result, plan, whole, before, last)
            if plan.keeps == FEATURES:
                away = len(windows.own) > 1 or len(plan.windows) > 1
                result.leave(plan, whole, before, last, away)


@dataclass
class _Joint:
    """What a joint pass leaves.

    `bank` and the source's features `hidden` are for frames; `seen`, on its machine alone, is
    for keyframes. `guidance`: by how much every other list's denoised keyframes (k, C, h, w)
    differ from the first one's; empty where frames are denoised for all.
    """

    bank: Bank = field(default_factory=dict)
    hidden: dict[str, Tensor] = field(default_factory=dict)
    seen: Bank = field(default_factory=dict)
    guidance: list[Tensor] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of what is for frames."""
        banked = (part if isinstance(part, list) else [part] for part in self.bank.values())
        tensors = [*chain.from_iterable(banked), *self.hidden.values(), *self.guidance]
        return sum(tensor.nbytes for tensor in tensors)


class _Result:
    """The frames as they are found, on this machine and the others."""

    def __init__(self, denoiser: Denoiser, shards: Shards) -> None:
        self.denoiser, self.shards = denoiser, shards
        self.denoised = [torch.zeros_like(denoiser.x) for _ in range(denoiser.lists)]
        self.run_here: list[Tensor] = []
        self.windows: list[tuple[range, _Joint | None, _Joint]] | None = []

    def leave(
        self, plan: StepPlan, own: range, before: _Joint | None, joint: _Joint, away: bool
    ) -> None:
        """Keeps what a window leaves for the next step, where all windows' fits.

        away: in main memory, so that the device's does not grow with the clip.
        """
        if away and self.windows == []:
            whole = joint.size * len(plan.matches.keyframes) // len(own)
            # Machines that share a clip have to agree.
            if not self.shards.once(lambda: torch.tensor(plan.fits(whole))):
                self.windows = None
        if self.windows is not None:
            left = _stored(before, slice(-1, None), away) if before else None
            self.windows.append((own, left, _stored(joint, slice(None), away)))

    def keep(self, frames: Tensor, denoised: list[Tensor]) -> None:
        for whole, part in zip(self.denoised, denoised, strict=True):
            whole[frames.to(whole.device)] = part

    def exchange(self) -> None:
        """Gives the other machines the frames that were run here, and takes theirs."""
        if self.shards is ALONE:
            return
        frames = torch.cat([torch.empty(0, dtype=torch.int64), *self.run_here])
        own = frames, [whole[frames.to(whole.device)] for whole in self.denoised]
        for theirs, denoised in self.shards.gather(own):
            self.keep(theirs, denoised)


def _edit_keyframes(
    result: _Result,
    plan: StepPlan,
    positions: Tensor,
    context: Bank,
    banked: frozenset[str] | None,
    remembered: int,
) -> _Joint:
    """The joint pass of some keyframes, on one machine for all."""
    frames, denoiser, seen = plan.matches.keyframes[positions], result.denoiser, dict[Any, Any]()

    def edit() -> tuple[Bank, dict[str, Tensor], list[Tensor]]:
        source = denoiser.source(frames, plan.injected)
        joint = KeyframePass(
            frames,
            source=source,
            banked=banked,
            lists=1 if plan.guides_along else None,
            context=context,
            remembered=remembered,
            merged_from=MERGED_FROM if plan.merges else None,
        )
        denoised = denoiser.run(joint)
        seen.update(joint.seen)
        carried = plan.hidden if plan.shallow is None and plan.hidden_along else ()
        return joint.bank, {name: source[name] for name in carried}, denoised

    bank, hidden, denoised = result.shards.once(edit)
    result.keep(frames, denoised)
    guidance = [part - denoised[0] for part in denoised[1:]] if plan.guides_along else []
    return _Joint(bank, hidden, seen, guidance)


def _propagate(
    result: _Result,
    plan: StepPlan,
    own: range,
    before: _Joint | None,
    joint: _Joint,
    again: bool = False,
) -> None:
    """Runs the frames whose future keyframe is one of the window's.

    They take its tokens and those of the last keyframe before. again: keyframes take their own.
    """
    near, denoiser = plan.matches.near, result.denoiser
    first = own.start - (before is not None)
    bank, hidden, guidance = joint.bank, joint.hidden, joint.guidance
    if before:
        guidance = [
            torch.cat([earlier[-1:], part])
            for earlier, part in zip(before.guidance, guidance, strict=True)
        ]
        bank = _joined(_rows(before.bank, slice(-1, None)), bank)
        hidden = {
            name: torch.cat([before.hidden[name][-1:].to(part.device), part])
            for name, part in hidden.items()
        }
    following = (near.future >= own.start) & (near.future < own.stop)
    if not plan.at_once and not again:
        following &= ~_with_own_tokens(plan.matches)
    finest = (
        None
        if plan.shallow is None
        else (plan.features.finest[-1], plan.features.grid(plan.features.finest))
    )

    def work(part: Tensor) -> None:
        nearby = near.of(part).counted_from(first)
        found = plan.correspondences
        tokens = partial(found.tokens, plan.step, frames=part)
        weight = partial(found.weight, plan.step, frames=part)
        source = {} if finest else _hidden_of_frames(denoiser, plan, hidden, nearby, part)
        propagation = PropagationPass(
            part,
            source=source,
            bank=bank,
            near=nearby,
            tokens=tokens,
            weight=weight,
            finest=finest,
        )
        denoised = denoiser.run(propagation, 1 if plan.guides_along else None)
        if guidance:
            layers = plan.features.finest
            along = (
                nearby,
                plan.matches.tokens(layers, part),
                plan.features.grid(layers),
                plan.matches.weight(layers, part),
            )
            alone = denoised[0]
            denoised += [
                alone + carry_guidance(other.to(alone.device), *along) for other in guidance
            ]
        result.keep(part, denoised)
        result.run_here.append(part)

    denoiser.in_parts(result.shards.here(following.nonzero().flatten()), work)


def _hidden_of_frames(
    denoiser: Denoiser, plan: StepPlan, hidden: dict[str, Tensor], near: Neighbours, frames: Tensor
) -> dict[str, Tensor]:
    """The source's hidden features of some frames.

    The keyframes' along the matches, unless every frame has its own. The source carried along its
    own matches is nearly the source, and the keyframes' features are computed anyway: it takes
    neither the time nor the memory for all frames at all steps. Edits were the same within a
    thousandth of their warp error.
    """
    if plan.hidden_along is None:
        return denoiser.source(frames, plan.hidden)
    found = {}
    for name, part in hidden.items():
        asked = plan.step, plan.hidden_along[name], frames
        tokens, weight = plan.correspondences.tokens(*asked), plan.correspondences.weight(*asked)
        found[name] = carry(part, near, tokens, (part.shape[2], part.shape[3]), weight)
    return found


def _with_own_tokens(matches: StepMatches) -> Tensor:
    """(N,) bool: the keyframes that keep their own tokens and nothing else."""
    near, own = matches.near, torch.arange(len(matches.keyframes))
    kept = (near.past[matches.keyframes] == own) & (near.future[matches.keyframes] == own)
    whole = torch.zeros(len(near.past), dtype=torch.bool)
    whole[matches.keyframes[kept]] = True
    return whole


def _rows(bank: Bank, rows: Tensor | slice) -> Bank:
    """The chosen keyframes' tokens, copied so that the others' memory is free."""

    def chosen(tokens: Tensor) -> Tensor:
        return tokens[rows].clone() if isinstance(rows, slice) else tokens[rows.to(tokens.device)]

    return {
        key: chosen(tokens) if isinstance(tokens, Tensor) else [chosen(part) for part in tokens]
        for key, tokens in bank.items()
    }


def _stored(joint: _Joint, rows: slice, away: bool) -> _Joint:
    """What some keyframes leave for frames alone, for another step.

    away: in main memory, so that the device's does not grow with the clip.
    """

    def stored(part: Tensor) -> Tensor:
        return part[rows].cpu() if away else part[rows]

    return _Joint(
        {key: stored(part) for key, part in joint.bank.items()},
        {name: stored(part) for name, part in joint.hidden.items()},
        guidance=[stored(part) for part in joint.guidance],
    )


def _joined(*banks: Bank) -> Bank:
    """Keyframes' tokens of several banks, in their order; banks without any are left out."""
    banks = tuple(bank for bank in banks if bank)
    if len(banks) < 2:
        return banks[0] if banks else {}

    def join(parts: tuple[Any, ...]) -> Any:
        if isinstance(parts[0], Tensor):
            return torch.cat([part.to(parts[0].device) for part in parts])
        return [join(sides) for sides in zip(*parts, strict=True)]

    return {key: join(tuple(bank[key] for bank in banks)) for key in banks[0]}
