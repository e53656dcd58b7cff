"""Exceptions from anywhere: the pack's own functions, every layer of the UNet, every place where
the host calls other packs.
"""

from __future__ import annotations

from typing import Any

import comfy.utils
import latent_preview
import pytest
from comfy.cli_args import args

from .tools.graph import Ready, edit, plain
from .tools.harness import Bench, Outcome
from .tools.moments import Fault, at_call, drawn
from .tools.plain import model
from .tools.traps import Traps

CALLS, LAYERS = 12, 5


def check_broken(bench: Bench, outcome: Outcome, number: int, where: str) -> None:
    """What was raised has reached the user, and nothing else."""
    assert outcome.error is None or where in outcome.message or outcome.error.endswith("Fault"), (
        where,
        outcome,
    )
    bench.check_after(outcome, number)


def test_an_exception_in_any_function_leaves_nothing(bench: Bench) -> None:
    prompt = edit()
    bench.settle(prompt)
    with at_call() as calls:
        bench.run(prompt)
    bench.run(plain())

    def fail() -> None:
        raise Fault("here")

    for number, moment in enumerate(drawn(calls.count, CALLS, seed=1)):
        with at_call(moment, fail) as failed:
            outcome = bench.run(prompt)
        check_broken(bench, outcome, number, failed.reached)


@pytest.mark.parametrize("blocks", [False, True])
def test_an_exception_wherever_the_host_calls_others_leaves_nothing(
    bench: Bench, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    traps, prompt = Traps(), edit()
    previewer = latent_preview.Latent2RGBPreviewer
    monkeypatch.setattr(args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        previewer,
        "decode_latent_to_preview",
        traps.around("preview", previewer.decode_latent_to_preview),
    )
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda *_, **__: traps.pass_by("progress")
    )
    monkeypatch.setattr(Ready, "model", traps.on(model(), blocks))
    bench.settle(prompt)
    traps.arm("", 0)
    bench.run(prompt)
    points = traps.some(seed=2)
    assert len(points) > 25
    bench.run(plain())
    for number, (name, call) in enumerate(points):
        traps.arm(name, call)
        outcome = bench.run(prompt)
        assert outcome.error is not None, name
        check_broken(bench, outcome, number, name)


def test_an_exception_in_any_layer_leaves_nothing(bench: Bench) -> None:
    """One of every kind, every self-attention, and some of the others."""
    prompt, seen = edit(), Traps()
    bench.settle(prompt)
    layers = dict(model().model.diffusion_model.named_modules())
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: seen.pass_by(name))
        for name, layer in layers.items()
    ]
    try:
        bench.run(prompt)
        points = _sample(seen.some(seed=3), layers)
        bench.run(plain())
        for number, (name, call) in enumerate(points):
            seen.arm(name, call)
            outcome = bench.run(prompt)
            assert outcome.error is not None
            check_broken(bench, outcome, number, name)
    finally:
        for hook in hooks:
            hook.remove()


def _sample(points: list[tuple[str, int]], layers: dict[str, Any]) -> list[tuple[str, int]]:
    """The points in self-attention layers, the first one in a layer of every kind,
    and LAYERS of the rest.
    """
    kinds = {type(layers[name]): (name, call) for name, call in reversed(points)}
    wanted = {*kinds.values(), *(point for point in points if point[0].endswith("attn1"))}
    rest = [point for point in points if point not in wanted]
    return sorted(wanted) + [rest[i - 1] for i in drawn(len(rest), LAYERS, seed=4)]
