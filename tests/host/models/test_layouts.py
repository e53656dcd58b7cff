"""Every layout of UNet: its layers are found, and the pack through its nodes is the plain host or
the oracle on all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_detection
import comfy.ops
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from tokenflow_pack.host.families.unet import find
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.sampling.apply import Apply
from tokenflow_pack.nodes.sampling.sampler import Sampler
from torch import Tensor

from nodes import InpaintModelConditioning

from ..helpers import built, call, invert, relative_error, watched
from ..once import once_a_module
from ..oracles import plain as oracle
from ..oracles import source as source_oracle
from ..oracles import unet as unet_oracle
from ..tiny_models import LAYOUTS, Layout, TinyVAE, moving_clip, random_conditioning, tiny_unet

STEPS, FRAMES, SIZE, CFG = 2, 3, (8, 16), 4.0
SHARES = 0.5, 1.0  # the first step with both, the second with features alone
# Self-attention layers, parameters in millions as published, and the decoder blocks that
# Plug-and-Play injects into: all with self-attention but the first.
KNOWN: dict[str, tuple[int, int, range]] = {
    "SD 1.5": (16, 860, range(4, 12)),
    "SD 1.5 inpaint": (16, 860, range(4, 12)),
    "SD 2.x": (16, 866, range(4, 12)),
    "SD 2.x v": (16, 866, range(4, 12)),
    "SD 2.x inpaint": (16, 866, range(4, 12)),
    "SDXL": (70, 2567, range(1, 6)),
    "SDXL inpaint": (70, 2567, range(1, 6)),
    "SSD-1B": (34, 1330, range(1, 6)),
    "Segmind Vega": (15, 745, range(1, 6)),
    "Segmind Vega v": (15, 745, range(1, 6)),
    "KOALA 700M": (21, 782, range(1, 4)),
    "SDXL refiner": (44, 2260, range(4, 9)),
    "SD 1.5 InstructPix2Pix": (16, 860, range(4, 12)),
    "SDXL InstructPix2Pix": (70, 2567, range(1, 6)),
    "EDM v": (15, 745, range(1, 6)),
    "EDM": (15, 745, range(1, 6)),
    "EDM v InstructPix2Pix": (70, 2567, range(1, 6)),
}
# SD 1.5 is what other tests are on, and these differ from others by their first convolution or
# their prediction alone.
LEFT_OUT = "SD 1.5", "SD 2.x inpaint", "SDXL inpaint", "Segmind Vega"
EDITED = [name for name in LAYOUTS if name not in LEFT_OUT]
INPAINT = ["SD 1.5 inpaint"]
INSTRUCTED = [name for name in LAYOUTS if name.endswith("InstructPix2Pix")]
# CosXL's edit model sees the pictures in its own space, the others as the autoencoder has them.
SCALED = ["EDM v InstructPix2Pix"]


pytestmark = pytest.mark.usefixtures("one_thread")


def layers_of(layout: Layout) -> list[str]:
    """The self-attention layers that the layout has, by the UNet's own way to count: a block per
    ResBlock, one more per downsampling.
    """
    per_level = len(layout.encoder) // len(layout.levels)
    depths = {
        f"input_blocks.{1 + i + i // per_level}": depth for i, depth in enumerate(layout.encoder)
    }
    depths |= {"middle_block": layout.middle}
    depths |= {f"output_blocks.{i}": depth for i, depth in enumerate(layout.decoder)}
    return [
        f"{block}.1.transformer_blocks.{i}.attn1"
        for block, depth in depths.items()
        for i in range(depth)
    ]


@once_a_module
def model(name: str) -> Any:
    return tiny_unet(LAYOUTS[name])


def clip(name: str) -> dict[str, Tensor]:
    return moving_clip(FRAMES, *SIZE, layout=LAYOUTS[name])


@once_a_module
def painted() -> tuple[Tensor, Tensor]:
    """Pictures (N, H, W, 3) and masks (N, H, W) for inpainting, no two frames alike."""
    generator = torch.Generator().manual_seed(1)
    height, width = SIZE
    masks = (torch.rand(FRAMES, height, width, generator=generator) > 0.5).float()
    return torch.rand(
        FRAMES, 8 * height, 8 * width, 3, generator=generator
    ), masks.repeat_interleave(8, 1).repeat_interleave(8, 2)


@once_a_module
def prompts(name: str) -> tuple[Any, Any, Any]:
    """Source, positive and negative CONDITIONING as the layout's users make them, pooled embeddings
    and pictures to inpaint included.
    """
    layout = LAYOUTS[name]
    source, positive, negative = (
        random_conditioning(seed, pooled=layout.takes_vector) for seed in (1, 2, 3)
    )
    if name in INPAINT:
        pictures, masks = painted()
        source, positive, _ = InpaintModelConditioning().encode(
            source, positive, pixels=pictures, vae=TinyVAE(), mask=masks
        )
        negative = InpaintModelConditioning().encode(
            negative, negative, pixels=pictures, vae=TinyVAE(), mask=masks
        )[0]
    if name in INSTRUCTED:
        positive, negative, _ = call(
            InstructPixToPixConditioning.execute,
            positive,
            negative,
            vae=TinyVAE(),
            pixels=painted()[0],
        )
        source = call(
            InstructPixToPixConditioning.execute, source, source, vae=TinyVAE(), pixels=painted()[0]
        )[0]
    return source, positive, negative


@once_a_module
def told(name: str) -> tuple[unet_oracle.Prompt, ...]:
    """The same for the oracle, worked out by hand."""
    height, width = SIZE
    concat = None
    if name in INPAINT:
        pictures, masks = painted()
        emptied = torch.where(masks[..., None] > 0, 0.5, pictures)
        latents = model(name).model.process_latent_in(TinyVAE().encode(emptied))
        concat = torch.cat([masks[:, None, ::8, ::8], latents], 1)
    elif name in INSTRUCTED:
        concat = TinyVAE().encode(painted()[0])
        concat = model(name).model.process_latent_in(concat) if name in SCALED else concat
    found = []
    for [[tokens, extra]], score in zip(prompts(name), (6, 6, 2.5), strict=True):
        pooled, vector = extra.get("pooled_output"), None
        if pooled is not None:
            size = 8 * height, 8 * width
            vector = (
                unet_oracle.refiner_vector(pooled, *size, score)
                if name == "SDXL refiner"
                else unet_oracle.sdxl_vector(pooled, *size)
            )
        found.append(unet_oracle.Prompt(tokens, vector, concat))
    return tuple(found)


@once_a_module
def inverted(name: str) -> tuple[Any, ...]:
    """DDIM Invert Video's outputs."""
    return invert(
        model(name), clip(name), positive=prompts(name)[0], steps=STEPS, refinement="none"
    )


@once_a_module
def matched(name: str, storage: str = "recompute") -> Any:
    """Build NN Correspondences' output."""
    features = call(
        ExtractFeatures.execute,
        model(name),
        inverted(name)[0],
        layers="all",
        steps="every",
        storage=storage,
    )[0]
    return call(
        BuildCorrespondences.execute,
        features,
        keyframe_interval=2,
        intervals="even",
        seed=1,
        backend="torch",
    )[0]


def edited(
    name: str,
    shares: tuple[float, float] | None = SHARES,
    storage: str = "recompute",
    **inputs: Any,
) -> Tensor:
    """TokenFlow Sampler's latents."""
    injection = call(PlugAndPlay.execute, *shares)[0] if shares else None
    _, positive, negative = prompts(name)
    correspondences = matched(name, storage)
    return call(
        Sampler.execute,
        model(name),
        positive,
        negative,
        correspondences,
        cfg=CFG,
        injection=injection,
        **inputs,
    )[0]["samples"]


@once_a_module
def oracle_path(name: str) -> tuple[Tensor, Tensor]:
    """The oracle's sigmas and inverted latents."""
    sigmas = comfy.samplers.KSampler(
        model(name), STEPS, torch.device("cpu"), "euler", "normal"
    ).sigmas
    return sigmas, source_oracle.invert(
        model(name),
        model(name).model.process_latent_in(clip(name)["samples"]),
        sigmas,
        told(name)[0],
    )


def true_unet(layout: Layout) -> UNetModel:
    """The model at its true widths, without any memory for its weights."""
    return UNetModel(
        **layout.unet(narrow=False),
        dtype=torch.float32,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_layers_are_found_at_true_widths(name: str) -> None:
    layout, (count, millions, injected) = LAYOUTS[name], KNOWN[name]
    unet = true_unet(layout)
    weights = unet.state_dict()
    assert type(comfy.model_detection.model_config_from_unet(weights, "")) is layout.family
    assert sum(weight.numel() for weight in weights.values()) / 1e6 == pytest.approx(
        millions, rel=5e-3
    )
    found = find(unet)
    assert found is not None
    assert list(found.attention) == layers_of(layout)
    assert len(found.attention) == count
    assert sorted({int(layer.split(".")[1]) for layer in found.injected_attention()}) == list(
        injected
    )
    assert found.injected_hidden == f"output_blocks.{injected[0]}.0.out_layers"


def test_blocks_without_self_attention_are_left_out() -> None:
    """The x4 upscaler attends to the prompt twice, but for its coarsest level."""
    layout = Layout(
        comfy.supported_models.SD_X4Upscaler,
        (1, 2, 2, 4),
        (0,) * 2 + (1,) * 6,
        1,
        (1,) * 9 + (0,) * 3,
        in_channels=7,
    )
    unet = true_unet(layout)
    assert (
        type(comfy.model_detection.model_config_from_unet(unet.state_dict(), "")) is layout.family
    )
    found = find(unet)
    assert found is not None
    assert found.blocks == (
        "input_blocks.10",
        "input_blocks.11",
        "middle_block",
        "output_blocks.0",
        "output_blocks.1",
        "output_blocks.2",
    )
    assert found.injected_hidden == "output_blocks.1.0.out_layers"


@pytest.mark.parametrize("name", EDITED)
def test_the_narrow_model_has_the_same_layers(name: str) -> None:
    found = find(model(name).model.diffusion_model)
    assert found is not None
    assert list(found.attention) == layers_of(LAYOUTS[name])
    assert model(name).model.model_type.name == LAYOUTS[name].prediction


@pytest.mark.parametrize("name", EDITED)
def test_inverted_latents_are_the_oracles(name: str) -> None:
    wanted_sigmas, wanted = oracle_path(name)
    inversion, _, sigmas = inverted(name)
    torch.testing.assert_close(sigmas, wanted_sigmas)
    for found, latents in zip(inversion.latents, wanted, strict=True):
        assert relative_error(found, latents) < 1e-4


@pytest.mark.parametrize("name", EDITED)
def test_edited_latents_are_the_oracles(name: str) -> None:
    sigmas, path = oracle_path(name)
    steps = matched(name).steps
    wanted = oracle.Edit(
        model(name),
        path,
        sigmas,
        *told(name),
        [step.keyframes.tolist() for step in steps],
        CFG,
        *SHARES,
        proposals=[
            {layer: matched(name).tokens(i, layer) for layer in matched(name).features.shapes}
            for i in range(len(steps))
        ],
        pnp_blocks=KNOWN[name][2],
        deep=True,
        guides=True,
    ).run()
    found = model(name).model.process_latent_in(edited(name))
    assert relative_error(found, wanted) < 1e-4


@pytest.mark.parametrize("name", EDITED)
def test_per_frame_without_injection_is_the_plain_host_bit_for_bit(name: str) -> None:
    _, noisy, sigmas = inverted(name)
    found = edited(name, shares=None, consistency="per frame")
    assert torch.equal(found, stock(model(name), name, sigmas, noisy))


def stock(patcher: Any, name: str, sigmas: Tensor, noisy: dict[str, Tensor]) -> Tensor:
    """The host's own SamplerCustom."""
    sampler = comfy.samplers.sampler_object("euler")
    _, positive, negative = prompts(name)
    return call(
        SamplerCustom.execute, patcher, False, 0, CFG, positive, negative, sampler, sigmas, noisy
    )[0]["samples"]


@pytest.mark.parametrize("name", ["SD 1.5 inpaint", "Segmind Vega v"])
def test_stored_features_give_the_edit_of_computed_ones(name: str) -> None:
    """What is computed anew is asked for with the source's own pictures and vector."""
    assert relative_error(edited(name, storage="memory"), edited(name)) < 1e-5


def test_every_pass_sees_the_pictures_and_masks_of_its_frames() -> None:
    name = "SD 1.5 inpaint"
    concat, passes = told(name)[1].concat, []
    assert concat is not None

    def see(args: dict[str, Any]) -> None:
        frames_pass = args["c"]["transformer_options"]["tokenflow_pass"]
        passes.append(type(frames_pass).__name__)
        rows = args["c"]["c_concat"].unflatten(0, (-1, len(frames_pass.frames)))
        assert all(torch.allclose(row, concat[frames_pass.frames], atol=1e-6) for row in rows)

    injection = call(PlugAndPlay.execute, *SHARES)[0]
    _, positive, negative = prompts(name)
    patched = watched(model(name), see)
    call(
        Sampler.execute,
        patched,
        positive,
        negative,
        matched(name),
        cfg=CFG,
        injection=injection,
        frames_per_pass=2,
    )
    assert set(passes) == {"CapturePass", "KeyframePass", "PropagationPass"}


def test_a_noise_mask_is_the_plain_hosts_bit_for_bit() -> None:
    """Inpainting inside the mask of each frame, with the latent that the host's node makes."""
    name = "SD 1.5 inpaint"
    _, noisy, sigmas = inverted(name)
    masked = {**noisy, "noise_mask": painted()[1]}
    patched = call(Apply.execute, model(name), matched(name), consistency="per frame")[0]
    found = stock(patched, name, sigmas, masked)
    assert torch.equal(found, stock(model(name), name, sigmas, masked))
    assert relative_error(found, stock(model(name), name, sigmas, noisy)) > 0.01


def test_an_inpainting_model_takes_plain_prompts() -> None:
    """The host then lets it see nothing of the frames, all of which it paints."""
    name = "SD 1.5 inpaint"
    plain = [random_conditioning(seed) for seed in (1, 2, 3)]
    inversion = invert(model(name), clip(name), positive=plain[0], steps=STEPS, refinement="none")[
        0
    ]
    edits = []
    for storage in ("memory", "recompute"):
        features = call(
            ExtractFeatures.execute,
            model(name),
            inversion,
            layers="all",
            steps="every",
            storage=storage,
        )[0]
        correspondences = built(features)
        injection = call(PlugAndPlay.execute, *SHARES)[0]
        edits.append(
            call(
                Sampler.execute,
                model(name),
                *plain[1:],
                correspondences,
                cfg=CFG,
                injection=injection,
            )[0]["samples"]
        )
    assert relative_error(*edits) < 1e-5


@pytest.mark.parametrize(
    ("decoder", "listed"),
    [
        (
            (0, 0, 0, 1) + (0,) * 8,
            "input_blocks.1, input_blocks.2, .*, middle_block, output_blocks.3.",
        ),
        ((0,) * 12, "input_blocks.1, .*, input_blocks.8, middle_block."),
    ],
    ids=["one block", "none"],
)
def test_an_injection_without_layers_for_it_is_refused(
    decoder: tuple[int, ...], listed: str
) -> None:
    patcher = tiny_unet(replace(LAYOUTS["SD 1.5"], decoder=decoder))
    source, positive, negative = prompts("SD 1.5")
    inversion = invert(patcher, moving_clip(2, 8, 8), positive=source, steps=1, refinement="none")[
        0
    ]
    features = call(
        ExtractFeatures.execute, patcher, inversion, layers="all", steps="every", storage="memory"
    )[0]
    correspondences = call(BuildCorrespondences.execute, features, backend="torch")[0]

    def edit(attention_until: float, features_until: float, layers: str = "decoder") -> Tensor:
        injection = call(PlugAndPlay.execute, attention_until, features_until, layers)[0]
        return call(
            Sampler.execute, patcher, positive, negative, correspondences, injection=injection
        )[0]["samples"]

    for chosen in ((0.5, 0.0), (0.0, 0.8), (0.5, 0.0, "late decoder")):
        with pytest.raises(
            NodeError,
            match="^TokenFlow Sampler, input 'injection': .* second block "
            f".* {listed} Disconnect it",
        ):
            edit(*chosen)
    with pytest.raises(NodeError, match=f"^Apply TokenFlow, input 'injection': .* {listed}"):
        call(Apply.execute, patcher, correspondences, injection=call(PlugAndPlay.execute)[0])
    without = call(Sampler.execute, patcher, positive, negative, correspondences)[0]["samples"]
    assert torch.equal(edit(0.0, 0.0), without)
