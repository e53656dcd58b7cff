"""TokenFlow for ComfyUI: consistent video editing with image diffusion models."""

from .nodes import TokenFlowExtension


async def comfy_entrypoint() -> TokenFlowExtension:
    """The door ComfyUI knocks on."""
    return TokenFlowExtension()
