"""The embedded model through the host's own nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.lora import model_lora_keys_clip, model_lora_keys_unet
from tokenflow_pack.host.files.demo_model import FEW, FEW_STEPS, load_demo_model
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes import demo_model as node_file
from tokenflow_pack.nodes.inversion import InvertVideo

import nodes
from demo.scenes import SHAPES, Scene, grid, true_flow

UNET_LORA = {
    "kohya": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "diffusers": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q",
}
TEXT_LORA = {
    "kohya": "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    "diffusers": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
}
SUFFIXES = {
    "kohya": (".lora_up.weight", ".lora_down.weight"),
    "diffusers": ("_lora.up.weight", "_lora.down.weight"),
}


pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def parts() -> Any:
    return load_demo_model()


def picture(size: int = 128) -> torch.Tensor:
    """An IMAGE of a wood star on water."""
    return (
        Scene(torch.Generator().manual_seed(4), "wood", "star", "water")
        .render(size=size)
        .movedim(0, -1)[None]
    )


def encode(clip: Any, text: str) -> list:
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def sample(model: Any, clip: Any, size: int = 8) -> torch.Tensor:
    latent = {"samples": torch.zeros(1, 16, size, size)}
    prompts = encode(clip, "a gold star on water"), encode(clip, "")
    return nodes.KSampler().sample(model, 1, 2, 3.0, "euler", "normal", *prompts, latent)[0][
        "samples"
    ]


def lora(style: str, key: str, width: int) -> dict[str, torch.Tensor]:
    up, down = SUFFIXES[style]
    generator = torch.Generator().manual_seed(0)
    return {
        f"{key}{up}": torch.randn(width, 4, generator=generator),
        f"{key}{down}": torch.randn(4, width, generator=generator),
    }


def test_stock_nodes_sample_a_picture_that_depends_on_the_prompt(parts: Any) -> None:
    model, clip, vae = parts
    latent = {"samples": torch.zeros(2, 16, 32, 32)}
    settings = (model, 7, 3, 4.0, "euler", "normal")
    prompts = "a gold star on water", "a red box on grass"
    first, second = (
        nodes.KSampler().sample(*settings, encode(clip, text), encode(clip, ""), latent)[0]
        for text in prompts
    )
    assert first["samples"].shape == (2, 16, 32, 32)
    assert not torch.allclose(first["samples"], second["samples"], atol=0.1)
    assert nodes.VAEDecode().decode(vae, first)[0].shape == (2, 128, 128, 3)


def test_the_noise_schedule_buries_the_mean_colour(parts: Any) -> None:
    sampling = parts[0].get_model_object("model_sampling")
    assert 60 < float(sampling.sigma_max) < 70


@pytest.mark.parametrize("tiled", [False, True])
def test_the_autoencoder_keeps_the_picture(parts: Any, tiled: bool) -> None:
    vae, image = parts[2], picture()
    encoder, decoder = (
        (nodes.VAEEncodeTiled(), nodes.VAEDecodeTiled())
        if tiled
        else (nodes.VAEEncode(), nodes.VAEDecode())
    )
    settings = {"tile_size": 64, "overlap": 16} if tiled else {}
    latent = encoder.encode(vae, image, **settings)[0]
    assert latent["samples"].shape == (1, 16, 32, 32)
    error = (decoder.decode(vae, latent, **settings)[0] - image).square().mean()
    assert -10 * torch.log10(error) > 37


def test_the_autoencoder_crops_to_whole_patches(parts: Any) -> None:
    assert nodes.VAEEncode().encode(parts[2], picture()[:, :98, :103])[0]["samples"].shape == (
        1,
        16,
        24,
        25,
    )


def test_previews_are_the_mean_colours_of_patches(parts: Any) -> None:
    from latent_preview import Latent2RGBPreviewer

    model, _, vae = parts
    image = picture()
    latent_format = model.model.latent_format
    previewer = Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )
    small = previewer.decode_latent_to_preview(nodes.VAEEncode().encode(vae, image)[0]["samples"])
    means = torch.nn.functional.avg_pool2d(image.movedim(-1, 1), 4)[0].movedim(0, -1)
    shown = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(32, 32, 3) / 255
    assert (shown - means).abs().max() < 0.06


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_a_lora_changes_the_unet(parts: Any, style: str) -> None:
    model, clip, _ = parts
    assert UNET_LORA[style] in model_lora_keys_unet(model.model, {})
    changed, _ = comfy.sd.load_lora_for_models(
        model, clip, lora(style, UNET_LORA[style], 64), 1.0, 1.0
    )
    plain = sample(model, clip)
    assert not torch.equal(sample(changed, clip), plain)
    assert torch.equal(sample(model, clip), plain)


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_a_lora_changes_the_text_encoder(parts: Any, style: str) -> None:
    model, clip, _ = parts
    assert TEXT_LORA[style] in model_lora_keys_clip(clip.cond_stage_model, {})
    _, changed = comfy.sd.load_lora_for_models(
        model, clip, lora(style, TEXT_LORA[style], 64), 1.0, 1.0
    )
    plain = encode(clip, "a gold star on water")[0][0]
    assert not torch.equal(encode(changed, "a gold star on water")[0][0], plain)
    assert torch.equal(encode(clip, "a gold star on water")[0][0], plain)


def test_eight_steps_of_the_distilled_model_are_many_guided_ones_of_the_other(parts: Any) -> None:
    """From the same noise, and nearer to it than eight unguided steps without the LoRA are."""
    model, clip, vae = parts
    few = load_demo_model(FEW)[0]
    latent = {"samples": torch.zeros(1, 16, 32, 32)}
    prompts = encode(clip, "a checkered ball on sand"), encode(clip, "")

    def painted(by: Any, steps: int, cfg: float) -> torch.Tensor:
        settings = (by, 6, steps, cfg, "euler", "sgm_uniform")
        found = nodes.KSampler().sample(*settings, *prompts, latent)[0]
        return nodes.VAEDecode().decode(vae, found)[0]

    guided, distilled, unguided = (
        painted(model, 2 * FEW_STEPS, 4.0),
        painted(few, FEW_STEPS, 1.0),
        painted(model, FEW_STEPS, 1.0),
    )

    def apart(one: torch.Tensor) -> float:
        return float((one - guided).square().mean())

    assert apart(distilled) < apart(unguided) / 2


def test_the_distilled_model_inverts_in_its_eight_steps(parts: Any) -> None:
    few, clip, vae = load_demo_model(FEW)[0], *parts[1:]
    image = picture()
    inversion = InvertVideo.execute(
        few,
        nodes.VAEEncode().encode(vae, image)[0],
        encode(clip, "a wood star on water"),
        steps=FEW_STEPS,
        scheduler="sgm_uniform",
        iterations=1,
        check_reconstruction=False,
    ).args[0]
    noisy = few.get_model_object("latent_format").process_out(inversion.latents[0])
    none = torch.zeros_like(noisy)
    prompts = encode(clip, "a wood star on water"), encode(clip, "")
    euler = comfy.samplers.sampler_object("euler")
    back = comfy.sample.sample_custom(few, none, 1.0, euler, inversion.sigmas, *prompts, noisy)
    error = (nodes.VAEDecode().decode(vae, {"samples": back})[0] - image).square().mean()
    assert -10 * torch.log10(error) > 30


def test_blocks_have_the_numbers_of_sd15(parts: Any) -> None:
    unet = parts[0].model.diffusion_model
    assert (len(unet.input_blocks), len(unet.output_blocks)) == (12, 12)
    attention = {
        name.rsplit(".", 4)[0] for name, _ in unet.named_modules() if name.endswith("attn1")
    }
    assert attention == {
        *(f"input_blocks.{i}" for i in (1, 2, 4, 5, 7, 8)),
        "middle_block",
        *(f"output_blocks.{i}" for i in range(3, 12)),
    }


@pytest.mark.parametrize("content", [None, b"version https://git-lfs.github.com/spec/v1\n"])
def test_missing_weights_are_an_error_that_says_what_to_do(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(node_file, "load_demo_model", lambda kind: load_demo_model(kind, path))
    with pytest.raises(NodeError, match=r"Load Demo Model.*model\.safetensors.*git lfs pull"):
        node_file.LoadDemoModel.execute()


def test_the_node_is_listed() -> None:
    from tokenflow_pack import comfy_entrypoint

    async def listed() -> list:
        return await (await comfy_entrypoint()).get_node_list()

    assert node_file.LoadDemoModel in asyncio.run(listed())
    assert node_file.LoadDemoModel.GET_SCHEMA().node_id == "TokenFlowLoadDemoModel"


@pytest.mark.parametrize("shape", SHAPES)
def test_true_flow_moves_one_frame_onto_the_next(shape: str) -> None:
    scene = Scene(torch.Generator().manual_seed(2), "lava", shape, "water")
    before, after = scene.render(0.2), scene.render(0.4)
    flow, occluded = true_flow(scene, 0.2, 0.4)
    x, y = grid(128)
    there = torch.stack([x, y], -1) + flow.movedim(0, -1) * 2 / 127
    moved = torch.nn.functional.grid_sample(after[None], there[None], align_corners=True)[0]
    seen = ~occluded
    assert flow.abs().max() > 2
    assert occluded.float().mean() < 0.3
    assert (moved - before)[:, seen].square().mean() < 0.05 * (after - before)[
        :, seen
    ].square().mean()
