"""Load Demo Model."""

from __future__ import annotations

from comfy_api.latest import io
from safetensors import SafetensorError

from ..host.files.demo_model import MODELS, UNET, load_demo_model
from ..host.validation.errors import NodeError
from .inputs import checked
from .schema import schema

NAME = "Load Demo Model (TokenFlow)"


class LoadDemoModel(io.ComfyNode):
    """The tiny text-to-image model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadDemoModel",
            NAME,
            "A tiny Stable Diffusion, or SD 3, of a made-up world, to try the pack without "
            "downloads or a GPU. Prompts: 'a [surface] [shape] on [ground]', in words that "
            "its help lists. 128 x 128 pixels.",
            ["demo", "example model", "toy model", "checkpoint"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    default=UNET,
                    optional=True,
                    tooltip="unet: laid out as Stable Diffusion 1.5. transformer: laid out as "
                    "SD 3, a flow model; use 28 steps of the scheduler simple. unet, 8 steps: "
                    "distilled; 8 steps of sgm_uniform, cfg 1.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="SD 1.5's blocks made narrow, or SD 3's. For KSampler, LoraLoader and "
                    "the nodes of this pack."
                ),
                io.Clip.Output(tooltip="The text encoder, for CLIP Text Encode."),
                io.Vae.Output(
                    tooltip="The autoencoder, for VAE Encode and VAE Decode: a 128 x 128 "
                    "picture is a 32 x 32 latent."
                ),
            ],
        )

    @classmethod
    @checked()
    def execute(cls, model: str = UNET) -> io.NodeOutput:
        try:
            return io.NodeOutput(*load_demo_model(model))
        except (FileNotFoundError, ValueError, SafetensorError) as error:
            remedy = (
                "Install the pack again with its weights: `git lfs pull`, or a release archive."
            )
            raise NodeError(NAME, None, f"{error}.", remedy) from error
