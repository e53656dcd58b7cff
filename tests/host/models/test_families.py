"""A model family is one module: a made-up one, which is no UNet, is inverted, matched and edited by
the pack's nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import SamplerCustom
from tokenflow_pack.host import families
from tokenflow_pack.host.calls import Handover
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.tokenflow_ops import ATTENTION, extended_attention
from tokenflow_pack.tokenflow_ops.backbone import Backbone
from tokenflow_pack.tokenflow_ops.passes import AttentionCall
from torch import Tensor, nn

from ..helpers import built, call, invert, relative_error, watch
from ..once import once_a_module
from ..tiny_models import CHANNELS, CONTEXT, moving_clip, random_conditioning, random_module

WIDTH, HEADS, BLOCKS, STEPS, FRAMES, SIZE, CFG = 32, 2, 4, 2, 4, (8, 8), 3.0


class Attention(nn.Module):
    """Self-attention under names of its own, but for the projections."""

    heads = HEADS

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.after = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor, options: dict[str, Any]) -> Tensor:
        out: Tensor = self.after(
            optimized_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), HEADS)
        )
        return out


class MadeUp(nn.Module):
    """Transformer blocks over latent pixels; prompt and noise level are added to every token."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.inward, self.outward = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.words, self.level = nn.Linear(CONTEXT, WIDTH), nn.Linear(1, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(BLOCKS))
        self.stages = nn.ModuleList(Attention() for _ in range(BLOCKS))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        transformer_options: dict[str, Any],
        **_: Any,
    ) -> Tensor:
        """Through the host's wrappers, as all of its models run."""
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        run = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        out: Tensor = run.execute(x, timesteps, context, transformer_options)
        return out

    def _forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, transformer_options: dict[str, Any]
    ) -> Tensor:
        tokens = self.inward(x.flatten(2).transpose(1, 2))
        tokens = (
            tokens
            + self.words(context.mean(1, keepdim=True))
            + self.level(timesteps[:, None, None] / 1000)
        )
        for norm, stage in zip(self.norms, self.stages, strict=True):
            tokens = tokens + 0.5 * stage(norm(tokens), transformer_options)
        out: Tensor = self.outward(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return out


@dataclass
class MadeUpCall(AttentionCall):
    original: Callable[..., Tensor]
    options: dict[str, Any]

    @property
    def grid(self) -> tuple[int, int]:
        return SIZE

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        if context is None and value is None:
            return self.original(x, self.options)
        return self.run_injected(
            x, x if context is None else context, x if value is None else value
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = optimized_attention(q, k, v, HEADS)
        return out

    def project_out(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.module.after(tokens)
        return out


class MadeUpFamily:
    """All that the pack asks of a family."""

    @staticmethod
    def find(diffusion_model: Any) -> Backbone | None:
        if not isinstance(diffusion_model, MadeUp):
            return None
        layers = tuple(f"stages.{i}" for i in range(BLOCKS))
        return Backbone(layers, decoder=tuple((layer,) for layer in layers[1:]), blocks=layers)

    @staticmethod
    def wrapped(backbone: Backbone) -> tuple[str, ...]:
        return backbone.attention

    @staticmethod
    def given(options: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    @staticmethod
    def watch(clone: Any, key: str, backbone: Backbone) -> None:
        def diffusion_model(executor: Any, *args: Any) -> Tensor:
            if now := Handover.of(args[-1]):
                now.entrance.check(args[0], args[-1])
            return executor(*args)

        clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, key)
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, key, diffusion_model)

    @staticmethod
    def wrapper(backbone: Backbone, path: str, module: Any) -> Callable[..., Any]:
        def forward(
            original: Callable[..., Tensor], tokens: Tensor, options: dict[str, Any]
        ) -> Tensor:
            now = Handover.of(options)
            if now is None:
                return original(tokens, options)
            return now.work.attention(
                MadeUpCall(
                    path, module, tokens, None, None, now.of_batch(options), original, options
                )
            )

        return forward


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES, MadeUpFamily])


@once_a_module
def model() -> ModelPatcher:
    config = comfy.supported_models.SD15({"disable_unet_model_creation": True})
    config.set_inference_dtype(torch.float32, None)
    base = comfy.model_base.BaseModel(config)
    base.diffusion_model = random_module(MadeUp(), 0)
    cpu = torch.device("cpu")
    return ModelPatcher(base.eval(), load_device=cpu, offload_device=cpu)


@once_a_module
def matched(interval: int) -> Any:
    inversion = invert(model(), moving_clip(FRAMES, *SIZE), steps=STEPS, refinement="none")[0]
    features = call(
        ExtractFeatures.execute, model(), inversion, layers="all", steps="every", storage="memory"
    )[0]
    return built(features, interval)


def edited(interval: int = 2, inject: bool = False, **inputs: Any) -> Tensor:
    prompts = random_conditioning(2), random_conditioning(3)
    injection = call(PlugAndPlay.execute, 1.0, 0.0)[0] if inject else None
    return call(
        Sampler.execute,
        model(),
        *prompts,
        matched(interval),
        cfg=CFG,
        injection=injection,
        carry_until=0.0,
        **inputs,
    )[0]["samples"]


def test_per_frame_is_the_plain_host_bit_for_bit() -> None:
    inversion = matched(2).features.inversion
    noisy = {"samples": model().get_model_object("latent_format").process_out(inversion.latents[0])}
    chosen = sampler_object("euler")
    prompts = random_conditioning(2), random_conditioning(3)
    wanted = call(
        SamplerCustom.execute, model(), False, 0, CFG, *prompts, chosen, inversion.sigmas, noisy
    )[0]["samples"]
    assert torch.equal(edited(consistency="per frame"), wanted)


def test_every_frame_a_keyframe_is_joint_attention() -> None:
    jointly = edited(1, consistency="joint attention")
    assert relative_error(edited(1), jointly) < 1e-5
    assert relative_error(edited(1, consistency="per frame"), jointly) > 1e-4


def test_keyframes_attend_to_each_other_by_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 5 on what a layer was given."""
    seen: list[tuple[Tensor, Tensor, int]] = []
    attention = MadeUpCall.attend

    def watched(self: MadeUpCall, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention(self, q, k, v)
        if q.shape == k.shape and q.shape[1] > SIZE[0] * SIZE[1]:
            count = q.shape[1] // (SIZE[0] * SIZE[1])
            wanted = extended_attention(
                *(part[:1].unflatten(1, (count, -1))[0] for part in (q, k, v)), HEADS
            )
            seen.append((out[0], wanted.flatten(0, 1), count))
        return out

    monkeypatch.setattr(MadeUpCall, "attend", watched)
    edited()
    assert seen
    assert all(
        count == FRAMES // 2 and relative_error(found, wanted) < 1e-5
        for found, wanted, count in seen
    )


def test_all_modes_that_need_no_more_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in (
        "tokenflow",
        "joint attention",
        "first frame",
        "sparse-causal",
        "tokenflow, public code",
    ):
        assert torch.isfinite(edited(consistency=mode, propagation=ATTENTION)).all()


def test_queries_and_keys_are_injected(monkeypatch: pytest.MonkeyPatch) -> None:
    injected: set[str] = set()
    watch(monkeypatch, lambda asked, work: injected.update(work.source))
    with_source = edited(inject=True)
    assert injected == {f"stages.{i}" for i in range(2, BLOCKS)}
    assert relative_error(with_source, edited()) > 1e-5


def test_a_model_of_no_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES[:-1])
    with pytest.raises(NodeError, match=r"^DDIM Invert Video, input 'model': "):
        invert(model(), moving_clip(FRAMES, *SIZE), steps=STEPS)
