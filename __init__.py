"""TokenFlow for ComfyUI: consistent video editing with image diffusion models."""

from .nodes import TokenFlowExtension

WEB_DIRECTORY = "./web"  # the help pages; there are no scripts


async def comfy_entrypoint() -> TokenFlowExtension:
    """The door ComfyUI knocks on."""
    return TokenFlowExtension()
