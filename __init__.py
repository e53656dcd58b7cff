"""TokenFlow for ComfyUI: consistent video editing with image diffusion models."""

from pathlib import Path

from .host.internals import check_host

check_host()  # before anything that needs it is imported

try:
    from .host.demo_clip import offer_clip
    from .nodes import TokenFlowExtension
except ModuleNotFoundError as missing:
    requirements = Path(__file__).resolve().parent / "requirements.txt"
    raise ImportError(
        f'TokenFlow does not find the module {missing.name}. In ComfyUI\'s environment: pip install -r "{requirements}"'
    ) from missing

WEB_DIRECTORY = "./web"  # the help pages, and a script that shows on nodes what they say


async def comfy_entrypoint() -> TokenFlowExtension:
    """The door ComfyUI knocks on."""
    offer_clip()  # not in the extension's on_load: ComfyUI does not call it
    return TokenFlowExtension()
