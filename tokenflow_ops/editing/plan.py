"""What a step of an edit is to do, and what it asks of an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from ..features.source_features import SourceFeatures
from ..keyframes import Windows, shot_windows
from ..matching.correspondence import Correspondences, StepMatches
from ..passes import Pass

T = TypeVar("T")
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
