"""TokenFlow for ComfyUI: consistent video editing with image diffusion models."""

from .host.internals import check_host

check_host()  # before anything that needs it is imported

from .host.checkpoints.folders import remove_stale  # noqa: E402
from .host.files.demo_clip import offer_clip  # noqa: E402
from .nodes import TokenFlowExtension, tell_renamed  # noqa: E402

WEB_DIRECTORY = "./web"  # the help pages, and a script that shows on nodes what they say


async def comfy_entrypoint() -> TokenFlowExtension:
    """Gives ComfyUI the nodes, and the embedded clip to its input folder.

    Checkpoints that nobody goes on with are removed.
    """
    offer_clip()  # not in the extension's on_load: ComfyUI does not call it
    remove_stale()
    await tell_renamed()
    return TokenFlowExtension()
