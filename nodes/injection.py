"""Plug-and-Play Injection."""

from __future__ import annotations

from comfy_api.latest import io

from ..tokenflow_ops import Injection
from ..tokenflow_ops.injection import FEATURES_IN, ONE_BLOCK
from .inputs import checked
from .schema import InjectionSocket, schema


class PlugAndPlay(io.ComfyNode):
    """Keeps the source's structure in the edit (Tumanyan et al., CVPR 2023)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "PlugAndPlay",
            "Plug-and-Play Injection",
            "Holds the layout of the source while the prompt changes what things are made of: the "
            "source's attention and features replace the edit's at first.",
            ["pnp", "plug and play", "feature injection", "structure", "tokenflow"],
            advanced=("layers", "features_in"),
            inputs=[
                io.Float.Input(
                    "attention_until",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of SD's schedule, by its noise, with the source's queries and "
                    "keys. Lower: freer shapes.",
                ),
                io.Float.Input(
                    "features_until",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of SD's schedule, by its noise, with the source's ResBlock "
                    "features. Lower: freer layout.",
                ),
                io.Combo.Input(
                    "layers",
                    options=["decoder", "late decoder"],
                    default="decoder",
                    tooltip="decoder: as in the paper. late decoder: only its finer half holds on "
                    "to the source's attention.",
                ),
                io.Combo.Input(
                    "features_in",
                    options=list(FEATURES_IN),
                    default=ONE_BLOCK,
                    optional=True,
                    tooltip="one block: the paper's. every resolution: one block of each below the "
                    "full one; holds places and outlines far better where one block does not.",
                ),
            ],
            outputs=[
                InjectionSocket.Output(
                    display_name="injection", tooltip="For TokenFlow Sampler or Apply TokenFlow."
                )
            ],
        )

    @classmethod
    @checked()
    def execute(
        cls,
        attention_until: float = 0.5,
        features_until: float = 0.8,
        layers: str = "decoder",
        features_in: str = ONE_BLOCK,
    ) -> io.NodeOutput:
        return io.NodeOutput(Injection(attention_until, features_until, layers, features_in))
