"""TokenFlow for ComfyUI: consistent video editing with image diffusion models."""

from .host.internals import check_host

check_host()  # before anything that needs it is imported

from .nodes import TokenFlowExtension  # noqa: E402

WEB_DIRECTORY = "./web"  # the help pages; there are no scripts


async def comfy_entrypoint() -> TokenFlowExtension:
    """The door ComfyUI knocks on."""
    return TokenFlowExtension()
