"""Tune-A-Video Tuning."""

from __future__ import annotations

from typing import Any

import comfy.sd
from comfy_api.latest import io, ui

from ..host.validation.checks import check_latents, check_model
from ..host.validation.prompts import check_plain_prompt, check_prompts
from ..modes.tune_a_video import Tuning, tune_queries
from .inputs import checked
from .schema import schema

NAME = "Tune-A-Video Tuning"


class TuneAVideo(io.ComfyNode):
    """One-shot tuning of an image model on the source clip (Wu et al., ICCV 2023)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "TuneAVideo",
            NAME,
            "Trains the model's query weights on the source clip, whose frames look at the "
            "first and the previous one. Invert and edit with the result, sparse-causal. For "
            "comparison: TokenFlow trains nothing.",
            ["tune-a-video", "one-shot tuning", "fine-tune", "train lora", "video lora"],
            advanced=("learning_rate", "rank", "seed", "gradient_checkpointing"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The image model to tune (SD 1.x, SD 2.x, SDXL). It stays as it is.",
                ),
                io.Latent.Input(
                    "latents",
                    tooltip="The source frames, encoded with VAE Encode: one batch, "
                    "all of them in every step.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The source prompt: what the source clip shows, in plain words.",
                ),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=100000,
                    tooltip="Steps of training. 500 as published.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=3e-5,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    tooltip="Of AdamW. 0.00003 as published, for whole weights of Stable "
                    "Diffusion; a LoRA takes more, and so does the demo model (0.001).",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=128,
                    tooltip="0: whole weights, as published. Else a LoRA of this "
                    "rank: a much smaller file.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,  # the host adds to it at every step
                    control_after_generate=True,
                    tooltip="Of the noise, its levels, and the LoRA's first weights.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=True,
                    tooltip="Needs less than half the memory and about 40 % more "
                    "time. The result is the same.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The tuned model, to invert and edit with. The "
                    "given one stays as it was.",
                ),
                io.Custom("LORA_MODEL").Output(
                    display_name="lora",
                    tooltip="What was learned, for Save LoRA Weights, or Load LoRA "
                    "Model at another strength.",
                ),
                io.Custom("LOSS_MAP").Output(
                    display_name="loss_map", tooltip="The loss of every step, for Plot Loss Graph."
                ),
            ],
        )

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        latents: dict[str, Any],
        positive: Any,
        steps: int = 500,
        learning_rate: float = 3e-5,
        rank: int = 0,
        seed: int = 0,
        gradient_checkpointing: bool = True,
    ) -> io.NodeOutput:
        check_model(NAME, model)
        samples = check_latents(NAME, model, latents)
        check_prompts(NAME, model, positive)
        check_plain_prompt(NAME, positive)
        lora, losses = tune_queries(
            NAME,
            model,
            samples,
            positive,
            Tuning(steps, learning_rate, rank, seed, gradient_checkpointing),
        )
        tuned = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]
        tenth = max(1, steps // 10)
        first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
        text = (
            f"{len(samples)} frames, {steps} steps: "
            f"loss {first:.4f} in the first {tenth}, {last:.4f} in the last"
        )
        if "noise_mask" in latents:
            text += "\nthe latents' noise mask is not used: whole frames are learned"
        return io.NodeOutput(tuned, lora, {"loss": losses}, ui=ui.PreviewText(text))
