"""TokenFlow for ComfyUI: consistent video editing with image diffusion models."""

from pathlib import Path

try:
    from .nodes import TokenFlowExtension
except ModuleNotFoundError as missing:
    raise ImportError(
        f"TokenFlow does not find the module {missing.name}. It needs ComfyUI 0.3.75 or newer, and in ComfyUI's environment:"
        f' pip install -r "{Path(__file__).resolve().parent / "requirements.txt"}"'
    ) from missing

WEB_DIRECTORY = "./web"  # the help pages; there are no scripts


async def comfy_entrypoint() -> TokenFlowExtension:
    """The door ComfyUI knocks on."""
    return TokenFlowExtension()
