"""What the tests of the nodes on the host share: a short clip made ready for an edit, and ways to
drive, watch and stop a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import comfy.sd
import execution
import pytest
import torch
from comfy import model_management
from comfy_api.latest import InputImpl, Types
from comfy_extras.nodes_custom_sampler import SamplerCustom
from tokenflow_pack.host import progress
from tokenflow_pack.host.calls import PASS_KEY
from tokenflow_pack.host.runs.model_call import ModelCall
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling.apply import Apply
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.tokenflow_ops import DEEP_FEATURES
from torch import Tensor

from .once import once_a_session
from .tiny_models import moving_clip, random_conditioning, tiny_sd15

STEPS = 3
FRAMES = 5
SIZE = 8, 16
SOURCE, POSITIVE, NEGATIVE = (random_conditioning(seed) for seed in (1, 2, 3))


def call(function: Callable[..., Any], *args: Any, **inputs: Any) -> tuple[Any, ...]:
    """A node's outputs. Nodes run inside inference mode, as under the host."""
    with torch.inference_mode():
        out = function(*args, **inputs)
    return tuple(getattr(out, "args", out))


@once_a_session
def tiny_model(seed: int = 0) -> Any:
    return tiny_sd15(seed)


def invert(model: Any, latents: Any, **inputs: Any) -> tuple[Any, ...]:
    return call(
        InvertVideo.execute, model, latents, **{"positive": SOURCE, "steps": STEPS, **inputs}
    )


@once_a_session
def inverted(
    frames: int = FRAMES, size: tuple[int, int] = SIZE, of: Callable[[], Any] = tiny_model
) -> tuple[Any, ...]:
    """DDIM Invert Video's outputs: inversion, noisy latents, sigmas. of: makes the model."""
    return invert(of(), moving_clip(frames, *size))


@once_a_session
def extracted(
    frames: int = FRAMES,
    size: tuple[int, int] = SIZE,
    storage: str = "memory",
    of: Callable[[], Any] = tiny_model,
) -> Any:
    return call(
        ExtractFeatures.execute,
        of(),
        inverted(frames, size, of)[0],
        layers="all",
        steps="every",
        storage=storage,
    )[0]


def built(features: Any, interval: int = 2) -> Any:
    """Build NN Correspondences' output, with even intervals: tests count on how many there are."""
    return call(
        BuildCorrespondences.execute,
        features,
        keyframe_interval=interval,
        intervals="even",
        backend="torch",
    )[0]


@once_a_session
def matched(
    frames: int = FRAMES,
    size: tuple[int, int] = SIZE,
    storage: str = "memory",
    interval: int = 2,
    of: Callable[[], Any] = tiny_model,
) -> Any:
    """As `built`, of the clip."""
    return built(extracted(frames, size, storage, of), interval)


@once_a_session
def injection() -> Any:
    return call(PlugAndPlay.execute)[0]


@once_a_session
def pictures(frames: int = FRAMES, size: tuple[int, int] = SIZE) -> Tensor:
    """An IMAGE (frames, 8 h, 8 w, 3) of a smooth random plane that moves left by a latent pixel a
    frame, for optical flow.
    """
    height, width = (8 * side for side in size)
    noise = torch.rand(1, 3, size[0], size[1] + frames, generator=torch.Generator().manual_seed(0))
    plane = torch.nn.functional.interpolate(
        noise, (height, width + 8 * frames), mode="bicubic", align_corners=True
    )[0].clamp(0, 1)
    return torch.stack([plane[:, :, 8 * i : 8 * i + width] for i in range(frames)]).movedim(1, -1)


def edit(
    model: Any = None,
    positive: Any = POSITIVE,
    negative: Any = NEGATIVE,
    correspondences: Any = None,
    **inputs: Any,
) -> Tensor:
    """TokenFlow Sampler's latents."""
    inputs = {"cfg": 4.0, **_source_frames(correspondences, inputs), **inputs}
    return call(
        Sampler.execute,
        model or tiny_model(),
        positive,
        negative,
        correspondences or matched(),
        **inputs,
    )[0]["samples"]


# Balanced, but what the negative prompt differs by is every frame's own.
OWN_GUIDANCE: dict[str, Any] = {
    "preset": "faithful",
    "propagation": DEEP_FEATURES,
    "carry_until": 0.2,
}


def applied(model: Any = None, correspondences: Any = None, **inputs: Any) -> Any:
    """Apply TokenFlow's model."""
    inputs = {**_source_frames(correspondences, inputs), **inputs}
    return call(Apply.execute, model or tiny_model(), correspondences or matched(), **inputs)[0]


def _source_frames(correspondences: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the modes that follow optical flow ask for beside the rest."""
    if inputs.get("consistency") != "rerender":
        return {}
    inversion = (correspondences or matched()).features.inversion
    return {"frames": pictures(inversion.frames, tuple(inversion.latents.shape[-2:]))}


def stock(
    model: Any,
    positive: Any = POSITIVE,
    negative: Any = NEGATIVE,
    cfg: float = 4.0,
    clip: tuple[int, tuple[int, int]] = (FRAMES, SIZE),
    of: Callable[[], Any] = tiny_model,
) -> Tensor:
    """The host's own SamplerCustom from the noisy end of a clip's inversion, with `of`'s model."""
    _, noisy, sigmas = inverted(*clip, of)
    sampler = comfy.samplers.sampler_object("euler")
    return call(
        SamplerCustom.execute, model, False, 0, 4.0, positive, negative, sampler, sigmas, noisy
    )[0]["samples"]


def lora() -> dict[str, torch.Tensor]:
    """A LoRA of self-attention's value projection in the first block."""
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v"
    generator = torch.Generator().manual_seed(0)
    return {
        f"{key}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for side, shape in (("up", (32, 4)), ("down", (4, 32)))
    }


def with_lora(model: Any, strength: float) -> Any:
    return comfy.sd.load_lora_for_models(model, None, lora(), strength, 0)[0]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    return float((found - wanted).norm() / wanted.norm())


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Fails if what runs inside changes a ModelPatcher or the model it holds."""
    module = model.model

    def marks() -> list[Any]:
        given = [
            model.model_options,
            model.patches,
            model.object_patches,
            model.wrappers,
            model.callbacks,
            model.attachments,
        ]
        return [
            repr(given),
            {name: sorted(vars(part)) for name, part in module.diffusion_model.named_modules()},
        ]

    stock(model, clip=(1, SIZE))  # the host itself leaves marks when it loads a model
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}
    before = marks()
    yield
    assert marks() == before
    assert not any("forward" in vars(part) for part in module.modules())
    after = module.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(weight, weights[name]) for name, weight in after.items())


def watch(monkeypatch: pytest.MonkeyPatch, see: Callable[[ModelCall, Any], None]) -> None:
    """Calls `see(model call, pass)` before each pass that the pack runs."""
    run = ModelCall.run

    def seen(self: ModelCall, *args: Any, **kwargs: Any) -> Any:
        see(self, args[1])
        return run(self, *args, **kwargs)

    monkeypatch.setattr(ModelCall, "run", seen)


def watched(model: Any, see: Callable[[dict[str, Any]], None]) -> Any:
    """A clone that calls `see` with the host's arguments (input, timestep, c, cond_or_uncond)
    before each call of the UNet.
    """

    def wrapper(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        see(args)
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


@contextmanager
def interrupted() -> Iterator[None]:
    """Expects that what runs inside ends by the host's interrupt; leaves no interrupt behind."""
    try:
        with pytest.raises(model_management.InterruptProcessingException):
            yield
    finally:
        model_management.interrupt_current_processing(False)


def interrupt_after(updates: int, total: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The user's interrupt comes when the progress bar, which has to be of `total`, was updated so
    often. Returns: where it stood.
    """
    counted: list[int] = []

    class Bar:
        def __init__(self, length: int) -> None:
            assert length == total

        def update_absolute(self, value: int) -> None:
            counted.append(value)
            if len(counted) == updates:
                model_management.interrupt_current_processing()

    monkeypatch.setattr(progress, "ProgressBar", Bar)
    return counted


def executor(send: Callable[..., None], client: str | None = None, cache: str = "CLASSIC") -> Any:
    """The host's queue worker without a server.

    send: gets (event, data, client) of everything it tells. cache: one of the host's ways to keep
    results (execution.CacheType).
    """
    server = SimpleNamespace(
        client_id=client, last_node_id=None, last_prompt_id=None, send_sync=send
    )
    limits = {"lru": 100, "ram": 0.0, "ram_inactive": 0.0}  # newer hosts ask for the last
    return execution.PromptExecutor(
        server, cache_type=execution.CacheType[cache], cache_args=limits
    )


class Decoder:
    """Stands in for a VAE: the first three channels, each pixel eight times as large."""

    def decode(self, latents: Tensor) -> Tensor:
        return (
            (latents[:, :3] / 20 + 0.5)
            .repeat_interleave(8, 2)
            .repeat_interleave(8, 3)
            .movedim(1, -1)
        )


class Coder(Decoder):
    """A Decoder that encodes too: of each eight pixels the mean, and a fourth channel."""

    def encode(self, frames: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(frames.movedim(-1, 1).float(), 8)
        return torch.cat([(small - 0.5) * 20, small[:, :1]], 1)


def video(frames: Tensor, rate: int = 8, sound: Tensor | None = None) -> Any:
    """A VIDEO of frames (N, H, W, 3), with sound (channels, samples) at 8000 a second."""
    audio = None if sound is None else {"waveform": sound[None], "sample_rate": 8000}
    parts = Types.VideoComponents(images=frames, audio=audio, frame_rate=Fraction(rate))
    return InputImpl.VideoFromComponents(parts)


def frames_of(args: dict[str, Any]) -> list[int]:
    """The frames of a call of the UNet, by what the host hands to its wrapper."""
    return args["c"]["transformer_options"][PASS_KEY].frames.tolist()
