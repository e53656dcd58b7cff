"""The public code's choices, held to an oracle that runs them as the public code does:
three rows in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.tokenflow_ops.matching.build import BLENDS
from tokenflow_pack.tokenflow_ops.passes import SourceMatchPass
from torch import Tensor

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    SOURCE,
    STEPS,
    call,
    edit,
    extracted,
    injection,
    inverted,
    relative_error,
    tiny_model,
    watch,
)
from ..once import once_a_module
from ..oracles.public_code import ReferenceEdit

MODE = "tokenflow, public code"
INTERVAL = 3
CFG = 4.0
SIZE = 8, 10


@once_a_module
def matched(frames: int) -> Any:
    return call(
        BuildCorrespondences.execute,
        extracted(frames, SIZE),
        keyframe_interval=INTERVAL,
        intervals="even",
        seed=3,
        backend="torch",
    )[0]


def searched(
    monkeypatch: pytest.MonkeyPatch, frames: int
) -> list[Mapping[str, tuple[Tensor, Tensor]]]:
    """Filled, while an edit runs, with the matches of all frames by step and layer."""
    found: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in range(STEPS)]
    match = SourceMatchPass.attention

    def attention(self: SourceMatchPass, asked: Any) -> Tensor:
        tokens = match(self, asked)
        step = inverted(frames, SIZE)[0].step_of(float(asked.options["sigmas"][0]))
        empty = torch.zeros(frames, asked.x.shape[1], dtype=torch.int64)
        sides = found[step].setdefault(asked.layer, (empty, empty.clone()))
        for side, part in zip(sides, self.tokens(asked.layer), strict=True):
            side[self.frames] = part
        return tokens

    monkeypatch.setattr(SourceMatchPass, "attention", attention)
    return found


@pytest.mark.parametrize(
    ("frames", "shares"),
    [(6, (0.5, 0.8)), (8, (0.5, 0.8)), (2, (0.5, 0.8)), (6, None)],
    ids=["whole", "tail", "one chunk", "no injection"],
)
def test_the_edit_is_the_public_codes(
    monkeypatch: pytest.MonkeyPatch, frames: int, shares: tuple[float, float] | None
) -> None:
    proposals = searched(monkeypatch, frames)
    inputs = {"injection": call(PlugAndPlay.execute, *shares)[0]} if shares else {}
    found = edit(correspondences=matched(frames), consistency=MODE, cfg=CFG, **inputs)
    inversion = inverted(frames, SIZE)[0]
    oracle = ReferenceEdit(
        tiny_model(),
        inversion.latents,
        inversion.sigmas,
        SOURCE[0][0],
        POSITIVE[0][0],
        NEGATIVE[0][0],
        [step.keyframes.tolist() for step in matched(frames).steps],
        INTERVAL,
        CFG,
        *(shares or (0.0, 0.0)),
        proposals=proposals,
    )
    wanted = tiny_model().model.process_latent_out(oracle.run())
    assert relative_error(found, wanted) < 1e-4
    assert oracle.ties < 1e-3 * sum(
        side.numel() for step in proposals for sides in step.values() for side in sides
    )


def test_it_differs_from_ours() -> None:
    """Else the equality above would show little."""
    inputs = {"correspondences": matched(6), "injection": injection()}
    assert relative_error(edit(consistency=MODE, **inputs), edit(**inputs)) > 0.01


def test_passes_of_any_size_give_the_same() -> None:
    inputs = {"correspondences": matched(8), "injection": injection(), "consistency": MODE}
    assert relative_error(edit(frames_per_pass=3, **inputs), edit(**inputs)) < 1e-4


def test_the_search_is_repeated_in_every_layer_on_rows_that_were_propagated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds: list[str] = []
    watch(monkeypatch, lambda _, frames_pass: kinds.append(type(frames_pass).__name__))
    proposals = searched(monkeypatch, 6)
    edit(correspondences=matched(6), consistency=MODE)
    assert (
        kinds
        == ["SourceKeyframePass", "KeyframePass", "SourceMatchPass", "PropagationPass"] * STEPS
    )
    stored = matched(6).steps[0]
    layers = list(proposals[0])
    same = [
        float((proposals[0][layer][1] == own_chunk(stored, layer)).float().mean())
        for layer in layers
    ]
    assert same[0] == 1  # before any attention the source row is the source
    assert min(same) < 1


def own_chunk(stored: Any, layer: str) -> Tensor:
    """Stored matches of every frame to its own chunk's keyframe, which is the past or the future
    one; a keyframe's are itself.
    """
    own = torch.arange(6) // INTERVAL
    past, future = (side.long() for side in stored.tokens((layer,)))
    return torch.where((stored.near.future == own)[:, None], future, past)


@pytest.mark.parametrize("blend", BLENDS[1:3])
def test_blends_change_the_weights_alone(blend: str) -> None:
    found = call(
        BuildCorrespondences.execute,
        extracted(6, SIZE),
        keyframe_interval=INTERVAL,
        intervals="even",
        seed=3,
        backend="torch",
        blend=blend,
    )[0]
    assert all(
        torch.equal(one.keyframes, other.keyframes)
        for one, other in zip(found.steps, matched(6).steps, strict=True)
    )
    assert relative_error(edit(correspondences=found), edit(correspondences=matched(6))) > 1e-3
