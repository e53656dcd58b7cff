"""Tune-A-Video's one-shot tuning against its plain formula, and what comes out of it in stock nodes
and in the pack's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import pytest
import torch
from comfy import model_management
from comfy_extras import nodes_train
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.modes import tune_a_video as tuning
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.tuning import TuneAVideo
from tokenflow_pack.tokenflow_ops.passes import SparseCausalPass
from torch import Tensor

import nodes

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    SOURCE,
    built,
    call,
    edit,
    interrupted,
    invert,
    relative_error,
    tiny_model,
    untouched,
    watch,
)
from ..once import once_a_module
from ..oracles import tune_a_video as oracle
from ..tiny_models import LAYOUTS, moving_clip, tiny_sd15, tiny_unet

FRAMES, SIZE = 3, (8, 8)
SEED = 7
RATE = 1e-3


def tune(
    model: Any = None, latents: Any = None, positive: Any = SOURCE, **inputs: Any
) -> tuple[Any, ...]:
    """The node's outputs: model, lora, loss map."""
    clip = latents or moving_clip(FRAMES, *SIZE)
    return call(
        TuneAVideo.execute,
        model or tiny_model(),
        clip,
        positive,
        **{"steps": 2, "learning_rate": RATE, "seed": SEED, **inputs},
    )


@once_a_module
def tuned(rank: int = 0) -> tuple[Any, ...]:
    return tune(rank=rank, gradient_checkpointing=False)


def draw(model: Any, step: int) -> tuple[Tensor, Tensor]:
    """The noise of all frames and the noise level of a training step, as the host draws them."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED + 1000 * step)
        noise = torch.randn(moving_clip(FRAMES, *SIZE)["samples"].shape)
        return noise, torch.tensor(
            model.get_model_object("model_sampling").percent_to_sigma(torch.rand(1).item())
        )


def changes(lora: dict[str, Tensor]) -> Tensor:
    """The changes of all weights in one row, in the order of their names."""
    return torch.cat([lora[name].flatten() for name in sorted(lora)])


def clean(model: Any, latents: Any = None) -> Tensor:
    return model.model.process_latent_in((latents or moving_clip(FRAMES, *SIZE))["samples"])


@pytest.mark.parametrize("layout", ["SD 1.5", "SD 2.x v"])
def test_the_gradient_is_the_formulas(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain descent at rate 1 a step's change is the gradient itself."""
    model = tiny_unet(LAYOUTS[layout])
    latents = moving_clip(FRAMES, *SIZE, layout=LAYOUTS[layout])
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, lr: torch.optim.SGD(weights, lr))
    _, lora, losses = tune(model, latents, steps=1, learning_rate=1.0)
    weights, noisy = (
        oracle.query_weights(model),
        (clean(model, latents), *draw(model, 0), SOURCE[0][0]),
    )
    gradient = oracle.gradient(model, weights, *noisy)
    assert sorted(lora) == [f"diffusion_model.{name}.diff" for name in sorted(weights)]
    # float32: the formula itself is 1e-3 from float64.
    assert relative_error(-changes(lora), changes(gradient)) < 2e-3
    assert losses["loss"] == pytest.approx([float(oracle.loss(model, weights, *noisy))], rel=1e-5)


def test_the_change_is_adamws() -> None:
    model = tiny_model()
    before = oracle.query_weights(model)
    found = {name: weight.clone() for name, weight in before.items()}
    means, squares = (
        {name: torch.zeros_like(weight) for name, weight in before.items()} for _ in range(2)
    )
    for step in range(2):
        gradient = oracle.gradient(model, found, clean(model), *draw(model, step), SOURCE[0][0])
        for name, part in gradient.items():
            means[name] = 0.9 * means[name] + 0.1 * part
            squares[name] = 0.999 * squares[name] + 0.001 * part**2
            mean, square = (
                means[name] / (1 - 0.9 ** (step + 1)),
                squares[name] / (1 - 0.999 ** (step + 1)),
            )
            decayed = before[name] + (1 - RATE * 0.01) * (found[name] - before[name])
            found[name] = decayed - RATE * mean / (square.sqrt() + 1e-8)
    wanted = {name: weight - before[name] for name, weight in found.items()}
    # Of a gradient near zero, AdamW takes the sign alone.
    assert relative_error(changes(tuned()[1]), changes(wanted)) < 0.1


def test_the_loss_goes_down() -> None:
    """On noise that was not trained on, at low, middle and high levels."""
    model = tiny_model()
    latents = moving_clip(2, *SIZE)
    lora = tune(latents=latents, steps=30, gradient_checkpointing=False)[1]
    before = oracle.query_weights(model)
    after = {name: weight + lora[f"diffusion_model.{name}.diff"] for name, weight in before.items()}
    noise = torch.randn(latents["samples"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for sigma in (0.5, 2.0, 8.0):
            untrained, trained = (
                oracle.loss(
                    model, weights, clean(model, latents), noise, torch.tensor(sigma), SOURCE[0][0]
                )
                for weights in (before, after)
            )
            assert trained < 0.97 * untrained


@pytest.mark.parametrize("rank", [0, 4])
def test_the_stock_loader_makes_the_same_model_of_the_saved_file(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lora, _ = tuned(rank)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    call(nodes_train.SaveLoRA.execute, lora, "tuned")
    (file,) = tmp_path.glob("*.safetensors")
    loaded = call(
        nodes_train.LoraModelLoader.execute,
        tiny_model(),
        comfy.utils.load_torch_file(str(file)),
        1.0,
    )[0]
    found, again, plain = (sampled(one) for one in (model, loaded, tiny_model()))
    assert torch.equal(found, again)
    assert relative_error(found, plain) > 1e-4
    if rank:
        assert all(lora[name].shape[1] == rank for name in lora if name.endswith("lora_up.weight"))


def sampled(model: Any) -> Tensor:
    blank = {"samples": torch.zeros(1, 4, *SIZE)}
    return call(
        nodes.common_ksampler, model, 0, 2, 4.0, "euler", "normal", POSITIVE, NEGATIVE, blank
    )[0]["samples"]


def test_recomputed_blocks_and_weights_loaded_by_a_node_train_the_same() -> None:
    with torch.inference_mode():
        model = tiny_sd15()
    state = torch.get_rng_state()
    assert torch.equal(changes(tune(model, gradient_checkpointing=True)[1]), changes(tuned()[1]))
    assert torch.equal(torch.get_rng_state(), state)


def test_it_trains_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what changes is float32, what is computed is not."""
    wanted = tuned()[2]["loss"]
    monkeypatch.setattr(tuning, "_training_dtype", lambda model: torch.bfloat16)
    _, lora, losses = tune(gradient_checkpointing=False)
    assert all(change.dtype == torch.float32 for change in lora.values())
    assert losses["loss"] == pytest.approx(wanted, rel=0.02)
    assert losses["loss"] != wanted


def test_the_model_stays_as_it_was() -> None:
    with untouched(tiny_model()):
        tune(steps=1)
        load_again()


def load_again() -> None:
    """As the next node does: only then the host takes functions off the weights."""
    sampled(tiny_model())
    assert not any(
        getattr(module, "weight_function", None) for module in tiny_model().model.modules()
    )
    assert all(weight.grad is None for weight in tiny_model().model.parameters())


def test_the_tuned_model_inverts_and_edits() -> None:
    """Its inversion is taken for that of its checkpoint, as with any LoRA;
    another checkpoint's is refused.
    """
    model = tuned()[0]
    inversion = invert(model, moving_clip(FRAMES, *SIZE))[0]
    features = call(
        ExtractFeatures.execute,
        model,
        inversion,
        "one per resolution",
        "one noise level",
        storage="memory",
    )[0]
    matched = built(features)
    found, plain = (
        edit(one, correspondences=matched, consistency="sparse-causal")
        for one in (model, tiny_model())
    )
    assert relative_error(found, plain) > 1e-4
    with pytest.raises(NodeError, match="not the one the source was inverted with"):
        edit(tiny_model(1), correspondences=matched, consistency="sparse-causal")


def test_an_interrupt_ends_it_within_one_model_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def see(_: Any, frames_pass: Any) -> None:
        if isinstance(frames_pass, SparseCausalPass):
            seen.append(len(frames_pass.frames))
            model_management.interrupt_current_processing(len(seen) == 2)

    watch(monkeypatch, see)
    with untouched(tiny_model()):
        with interrupted():
            tune(steps=5)
        load_again()
    assert seen == [FRAMES] * 2
    monkeypatch.undo()
    assert torch.equal(changes(tune(gradient_checkpointing=False)[1]), changes(tuned()[1]))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"latents": {"samples": torch.zeros(1, 4, 3, 8, 8)}}, "'latents': latents of shape"),
        ({"latents": {"samples": torch.full((1, 4, 8, 8), torch.nan)}}, "'latents': NaN"),
        ({"positive": [*SOURCE, *POSITIVE]}, "'positive': 2 prompts combined"),
        (
            {"positive": [[SOURCE[0][0], {"mask": torch.ones(1, 8, 8), "start_percent": 0.2}]]},
            "'positive': a prompt with mask, start_percent",
        ),
        ({"positive": [[SOURCE[0][0] * 1e38, {}]]}, "'learning_rate': the loss is nan at step 1"),
    ],
    ids=["video latents", "NaN", "combined prompts", "limited prompt", "no loss"],
)
def test_bad_input_is_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(NodeError, match=f"Tune-A-Video Tuning, input {message}"):
        tune(**inputs)


def test_a_host_that_trains_in_another_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nodes_train, "TrainSampler")
    with pytest.raises(NodeError, match="'model': this ComfyUI trains in another way"):
        tune(steps=1)
