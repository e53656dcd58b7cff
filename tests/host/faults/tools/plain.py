"""A sampling run of the host alone, with none of the pack's nodes in the process: what every run
after a fault is held against.

    python -m tests.host.faults.tools.plain FILE

from the root writes its latents to FILE, as safetensors.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...once import once_a_session

CLIP = 3, 8, 8
SETTINGS = {
    "seed": 5,
    "steps": 1,
    "cfg": 4.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
}


def conditionings() -> tuple[Any, Any, Any]:
    """The source's prompt, the edit's, and the negative one."""
    from ...tiny_models import random_conditioning

    return random_conditioning(1), random_conditioning(2), random_conditioning(3)


def source_prompt() -> Any:
    """The first of them."""
    return conditionings()[0]


@once_a_session
def model() -> Any:
    """A UNet as SD 1.5's, of two resolutions and four attention blocks:
    a run takes a quarter of the time.
    """
    from ...tiny_models import SD15, tiny_unet

    return tiny_unet(replace(SD15, levels=(1, 2), encoder=(1, 0), middle=-1, decoder=(1, 1, 1, 0)))


def latents() -> dict[str, Any]:
    """The source clip, encoded."""
    from ...tiny_models import moving_clip

    return moving_clip(*CLIP)


def _sampled() -> Any:
    import torch

    import nodes

    _, positive, negative = conditionings()
    with torch.inference_mode():
        return nodes.KSampler().sample(
            model(), positive=positive, negative=negative, latent_image=latents(), **SETTINGS
        )[0]["samples"]


def main() -> None:
    from launch.comfyui.inprocess import ROOT, import_comfyui

    import_comfyui(Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI"))
    from safetensors.torch import save_file

    found = _sampled()
    assert not any(name.startswith("tokenflow") for name in sys.modules)
    save_file({"latents": found}, sys.argv[1])


if __name__ == "__main__":
    main()
