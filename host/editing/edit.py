"""What an edit is made of, and where the sampler stands in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...tokenflow_ops import Correspondences, Injection, StepMatches
from ...tokenflow_ops.backbone import Backbone
from ...tokenflow_ops.propagation import Repeats

if TYPE_CHECKING:
    from ..runs.model_call import ModelCall
    from .edit_run import EditRun


@dataclass(frozen=True)
class Mode:
    """A way to keep frames together.

    Attributes:
        passes: Runs the passes of one evaluation; returns the denoised frames (N, C, h, w) for each
            list of conditionings.
        after_guidance: What becomes of the denoised frames (N, C, h, w), guidance included.
        needs_frames: Whether it needs the source's pictures.
        per_frame: Whether frames know nothing of each other.
        needs: The libraries that it cannot do without, by their modules.
        of_unets: Whether it is made for UNets alone.
    """

    passes: Callable[[EditRun, ModelCall, Moment], list[Tensor]]
    after_guidance: Callable[[EditRun, Moment, Tensor], Tensor] = lambda run, now, denoised: (
        denoised
    )
    needs_frames: bool = False
    per_frame: bool = False
    needs: tuple[str, ...] = ()
    of_unets: bool = False


@dataclass(frozen=True)
class Edit:
    """What an edit is made of.

    Attributes:
        node: The node's name, for errors.
        backbone: The model's layers.
        correspondences: The clip's matches.
        injection: Plug-and-Play, or None.
        mode: How frames are kept together.
        attended_keyframes: How many keyframes a frame attends to at most; 0 for the
            mode's own number.
        carry_until: Share of SD's schedule, by its noise, with carried pictures, see
            `tokenflow_ops.carrying.denoised.carry_denoised`.
        deep: Whether frames take all that comes up from below the UNet's full resolution from the
            keyframes (deep features), or the output of self-attention alone.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        mask: (N, H, W) in [0, 1], or one for all frames: 1 where frames are edited;
            None for everywhere.
        mask_from: From which share of SD's schedule on the mask holds. What stands where is decided
            before: a model that is shown the source's own ground all around goes on with it.
        frames: The source's pictures, (N, H, W, 3) in [0, 1], or None; modes that follow optical
            flow need them.
        guides_along: Whether frames between keyframes take the guidance of these.
        repeats: Which steps take what is left of the step before, None for none.
        merges: Whether a keyframe sees the others' tokens merged, where there are many.
        given: What frames are outside of the mask instead of the source, in the model's latent
            space, (N, C, h, w): made of keyframes that were edited elsewhere. None for the source.
    """

    node: str
    backbone: Backbone
    correspondences: Correspondences
    injection: Injection | None
    mode: Mode
    attended_keyframes: int
    carry_until: float
    deep: bool
    frames_per_pass: int
    mask: Tensor | None = None
    mask_from: float = 0.0
    frames: Tensor | None = None
    guides_along: bool = False
    repeats: Repeats | None = None
    merges: bool = False
    given: Tensor | None = None

    def told(self) -> list[Any]:
        """Lists what tells this edit of a clip from others: tensors and plain values."""
        inversion, steps = self.correspondences.features.inversion, self.correspondences.steps
        matches = {id(step.pairs): step.pairs.tokens for step in steps}
        return [
            repr(self.injection),
            self.frames_per_pass,
            self.mask,
            self.mask_from,
            self.given,
            inversion.conditioning,
            inversion.latents[0],
            inversion.latents[-1],
            [step.keyframes for step in steps],
            *matches.values(),
        ]


@dataclass(frozen=True)
class Moment:
    """Where the sampler stands.

    Shares are counted by `noise` on SD's schedule, or with `place` and `steps` on the inversion's,
    not with the steps of the run. So a run that is cut in two is one edit, and with fewer steps a
    share ends at the same noise level.

    Attributes:
        step: Step of the inversion, the same for all evaluations of one sampling step.
        matches: The step's keyframes and matches.
        attention: The self-attention layers that take the source's features now.
        hidden: The layers whose hidden features are the source's now.
        noise: Noise over signal where the step began.
        ends: The same where the run's next step begins, 0 after the last.
        place: Number of this step in the inversion's whole schedule, counted from 0.
        steps: How many steps that schedule has.
    """

    step: int
    matches: StepMatches
    attention: tuple[str, ...]
    hidden: tuple[str, ...]
    noise: float
    ends: float
    place: int
    steps: int

    @property
    def injected(self) -> tuple[str, ...]:
        """All layers that take the source's features."""
        return *self.attention, *self.hidden

    def before(self, share: float) -> bool:
        """Tells whether this step is among the first `share` of the schedule's."""
        return self.place < int(share * self.steps)


def kept_path(edit: Edit, sigma: float) -> Tensor:
    """Finds what an edit leaves as it is, on its path to noise.

    Args:
        edit: The edit.
        sigma: A noise level; 0 for what is kept itself.

    Returns:
        The source's path, or the given clip with the noise that the source has there,
        (N, C, h, w).
    """
    inversion = edit.correspondences.features.inversion
    source = inversion.latents_at(sigma)
    if edit.given is None:
        return source
    signal = edit.backbone.parameterization.signal(sigma)
    return source + signal * (edit.given.to(source) - inversion.latents[-1])
