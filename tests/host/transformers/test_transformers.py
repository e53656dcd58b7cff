"""Every family of image transformers that the pack takes, narrow and with random weights: what must
hold whatever they compute.
"""

from __future__ import annotations

import math
from functools import partial
from pkgutil import resolve_name
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import SamplerCustom
from tokenflow_pack.host.families.transformer import REFUSED, find
from tokenflow_pack.host.validation.checks import check_model
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.presets import NUMBER_BY_PRESET, PRESETS
from tokenflow_pack.nodes.sampling.apply import Apply
from tokenflow_pack.nodes.sampling.edit import preset_for
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.tokenflow_ops import ATTENTION, DEEP_FEATURES
from torch import Tensor

import nodes

from ..helpers import call, relative_error, tiny_model
from ..tiny_transformers import LAYOUTS, clip, prompt, tiny_transformer
from .edits import (
    CFG,
    FRAMES,
    NEGATIVE,
    POSITIVE,
    SIZE,
    SOURCE,
    STEPS,
    copies,
    edited,
    inverted,
    matched,
    plain,
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_per_frame_is_the_plain_host_bit_for_bit(name: str) -> None:
    assert torch.equal(edited(name, consistency="per frame"), plain(name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_source_comes_back(name: str) -> None:
    """Its own prompt, no guidance: noise and features stand for the clip."""
    found = edited(name, positive=SOURCE, cfg=1.0, consistency="per frame")
    assert relative_error(found, clip(name, FRAMES, *SIZE)["samples"]) < 1e-3


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
@pytest.mark.parametrize("name", LAYOUTS)
def test_one_frame_is_edited_as_the_plain_host_does(name: str, propagation: str) -> None:
    """It is its only keyframe."""
    found = edited(name, correspondences=matched(name, 1), propagation=propagation)
    assert relative_error(found, plain(name, 1)) < 1e-6


# The host fills Flux.2's prompts up to 512 tokens, which takes its time.
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "Flux.2"])
def test_equal_frames_stay_equal_and_carrying_changes_others(name: str) -> None:
    """Copies of a frame are one picture several times: edited together they are what the host
    makes of one, whatever is carried.
    """
    found = copies(name)
    alone = edited(name, correspondences=found, consistency="per frame")
    jointly = edited(name, correspondences=found, consistency="joint attention")
    assert relative_error(jointly, alone) < 1e-4
    for propagation in (ATTENTION, DEEP_FEATURES):
        same = edited(name, correspondences=found, propagation=propagation)
        assert relative_error(same, alone) < 1e-4
        moved = edited(name, propagation=propagation)
        assert relative_error(moved, edited(name, consistency="per frame")) > 1e-3


def test_the_preset_carries_attention_alone() -> None:
    found = edited("Flux", cfg=1.0)
    assert torch.equal(found, edited("Flux", propagation=ATTENTION, cfg=1.0))
    assert not torch.equal(found, edited("Flux", propagation=DEEP_FEATURES, cfg=1.0))


def test_presets_carry_pictures_for_longer_than_a_unets() -> None:
    """As the help pages say, and an edit does: 0.5 of SD's schedule, lean 0.65; faithful none."""
    unet, transformer = tiny_model(), tiny_transformer("Flux")
    shares = {
        name: [preset_for(name, model).carry_until for model in (unet, transformer)]
        for name in PRESETS
    }
    assert shares.pop("faithful") == [0.0, 0.0]
    assert shares.pop("lean") == [0.2, 0.65]
    assert set(map(tuple, shares.values())) == {(0.2, 0.5)}
    asked = {"cfg": 1.0, "carry_until": NUMBER_BY_PRESET}
    carried = edited("Flux", **asked)
    assert torch.equal(carried, edited("Flux", cfg=1.0, carry_until=0.5))
    assert not torch.equal(carried, edited("Flux", **asked, preset="faithful"))
    lean = edited("Flux", **asked, preset="lean")
    assert torch.equal(lean, edited("Flux", cfg=1.0, carry_until=0.65))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = tiny_transformer(name)
    before = {path: dict(vars(module)) for path, module in model.model.named_modules()}
    options = repr(model.model_options)
    edited(name, injection=call(PlugAndPlay.execute)[0])
    after = {path: dict(vars(module)) for path, module in model.model.named_modules()}
    assert {path: kept.keys() for path, kept in after.items()} == {
        path: kept.keys() for path, kept in before.items()
    }
    assert repr(model.model_options) == options


@pytest.mark.parametrize("name", LAYOUTS)
def test_injected_queries_and_keys_bring_the_source_nearer(name: str) -> None:
    """All the way they decide where every token looks."""
    injection = call(PlugAndPlay.execute, 1.0, 0.0)[0]
    with_source = edited(name, consistency="per frame", injection=injection)
    assert relative_error(with_source, edited(name, consistency="per frame")) > 1e-4
    own = edited(name, positive=SOURCE, cfg=1.0, consistency="per frame", injection=injection)
    assert relative_error(own, clip(name, FRAMES, *SIZE)["samples"]) < 1e-3


@pytest.mark.parametrize("name", ["SD 3", "Flux", "Z-Image"])
@pytest.mark.parametrize("depth", [1.0, 0.5], ids=["from pure noise", "from below"])
def test_every_sampling_node_edits_alike(name: str, depth: float) -> None:
    _, noisy, sigmas = inverted(name, FRAMES, depth)
    correspondences = matched(name, FRAMES, depth)
    wanted = edited(name, correspondences=correspondences)
    model = call(Apply.execute, tiny_transformer(name), correspondences, carry_until=0.0)[0]
    prompts = prompt(name, POSITIVE), prompt(name, NEGATIVE)
    sampler = comfy.samplers.sampler_object("euler")
    custom = call(SamplerCustom.execute, model, False, 0, CFG, *prompts, sampler, sigmas, noisy)[0][
        "samples"
    ]
    first = STEPS - (len(sigmas) - 1)
    arguments = ("disable", 0, STEPS, CFG, "euler", "simple", *prompts, noisy, first, STEPS)
    advanced = call(nodes.KSamplerAdvanced().sample, model, *arguments, "disable")[0]["samples"]
    assert torch.equal(custom, wanted)
    assert torch.equal(advanced, wanted)


def test_a_run_in_two_parts_is_one_run() -> None:
    """The host divides what lies between by 1 - sigma, and multiplies it again."""
    name = "SD 3"
    model = call(Apply.execute, tiny_transformer(name), matched(name), carry_until=0.0)[0]
    prompts = prompt(name, POSITIVE), prompt(name, NEGATIVE)
    sample = partial(nodes.KSamplerAdvanced().sample, model)
    common = ("disable", 0, STEPS, CFG, "euler", "simple", *prompts)
    half = call(sample, *common, inverted(name)[1], 0, 1, "enable")[0]
    found = call(sample, *common, half, 1, STEPS, "disable")[0]["samples"]
    assert relative_error(found, edited(name)) < 1e-5


def test_another_packs_attention_is_asked_for() -> None:
    asked = []

    def theirs(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        asked.append(function)
        return function(*args, **kwargs)

    model: ModelPatcher = tiny_transformer("SD 3").clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = theirs
    assert torch.equal(edited("SD 3", model), edited("SD 3"))
    assert asked


def test_a_block_that_attends_out_of_sight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host that gives its attention no options any more."""
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit

    blind = host_attention.attention_basic.__wrapped__
    monkeypatch.setattr(mmdit, "optimized_attention", blind)
    with pytest.raises(NodeError, match=r"'model': joint_blocks\.0 attended 0 times"):
        edited("SD 3")


def test_a_skipped_block_without_a_patch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    correspondences = matched("SD 3")
    model = tiny_transformer("SD 3")
    network = model.model.diffusion_model
    core = type(network).forward_core_with_concat

    def fewer(self: Any, x: Tensor, c: Tensor, context: Tensor, *rest: Any) -> Tensor:
        kept = self.joint_blocks
        self.joint_blocks = torch.nn.ModuleList([*kept[:1], *kept[2:]])
        try:
            return core(self, x, c, context, *rest)
        finally:
            self.joint_blocks = kept

    monkeypatch.setattr(type(network), "forward_core_with_concat", fewer)
    with pytest.raises(NodeError, match=r"1 of 5 blocks did not run"):
        edited("SD 3", correspondences=correspondences)


def test_reference_images_are_refused() -> None:
    """Flux Kontext sees them as further image tokens."""
    positive = prompt("Flux", POSITIVE)
    positive[0][1]["reference_latents"] = [clip("Flux", 1, *SIZE)["samples"]]
    with pytest.raises(NodeError, match="reference"):
        call(
            Sampler.execute,
            tiny_transformer("Flux"),
            positive,
            prompt("Flux", NEGATIVE),
            matched("Flux"),
            cfg=CFG,
        )


@pytest.mark.parametrize(
    "path",
    [
        "cascade.stage_c.StageC",
        "chroma_radiance.model.ChromaRadiance",
        "cosmos.model.GeneralDIT",
        "genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
        "hidream.model.HiDreamImageTransformer2DModel",
        "hunyuan_video.model.HunyuanVideo",
        "hydit.models.HunYuanDiT",
        "lightricks.model.LTXVModel",
        "omnigen.omnigen2.OmniGen2Transformer2DModel",
        "pixart.pixartms.PixArtMS",
        "wan.model.WanModel",
    ],
)
def test_others_of_the_host_are_refused_with_the_reason(path: str) -> None:
    network = resolve_name(f"comfy.ldm.{path}")
    model = torch.nn.Module()
    model.diffusion_model = network.__new__(network)
    torch.nn.Module.__init__(model.diffusion_model)
    cpu = torch.device("cpu")
    with pytest.raises(NodeError, match=f"'model': .*{REFUSED[path.partition('.')[0]][:20]}"):
        check_model("DDIM Invert Video", ModelPatcher(model, cpu, cpu))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layers_are_found_in_order(name: str) -> None:
    backbone = find(tiny_transformer(name).model.diffusion_model)
    assert backbone is not None
    second = 3 if name == "SD 3.5 medium" else 0
    assert len(backbone.attention) == len(backbone.blocks) + second
    # All but the first two and the last sixth, in the order the model runs them.
    last = len(backbone.blocks) - math.ceil(len(backbone.blocks) / 6)
    assert backbone.deep == backbone.blocks[2:last]
    ran: list[str] = []
    network = tiny_transformer(name).model.diffusion_model
    hooks = [
        network.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: ran.append(path)
        )
        for path in backbone.blocks
    ]
    try:
        plain(name, 1)
    finally:
        for hook in hooks:
            hook.remove()
    assert tuple(ran[: len(backbone.blocks)]) == backbone.blocks
