"""The same edit from Python: frames in, frames out, no ComfyUI.

It takes a diffusers StableDiffusionPipeline (SD 1.x, SD 2.x). `edit_video` does all of it. Its
stages can be called one by one, and the results of the first three kept for another prompt:
`encode_frames`, `invert_frames`, `extract_features`, `tokenflow_ops.build_correspondences`,
`sample_edit`, `decode_latents`.

diffusers itself is not imported: what is used of it is the pipeline that is handed in.
"""

from ..propagation import PROPAGATIONS
from .pipeline import decode_latents, edit_video, encode_frames
from .sampling import PLUG_AND_PLAY, sample_edit
from .source import extract_features, invert_frames

__all__ = [
    "PLUG_AND_PLAY",
    "PROPAGATIONS",
    "decode_latents",
    "edit_video",
    "encode_frames",
    "extract_features",
    "invert_frames",
    "sample_edit",
]
