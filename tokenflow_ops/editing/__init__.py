"""One step of an edit, for all frames of a clip (paper, section 4.2).

Keyframes are edited jointly, window by window, and every frame from their tokens. This is
the method's one loop. It knows neither ComfyUI nor diffusers: what evaluates the model is
behind `Denoiser`.
"""

from .plan import Denoiser, StepPlan
from .result import Edited, Left
from .step import edit_again, edit_step

__all__ = ["Denoiser", "Edited", "Left", "StepPlan", "edit_again", "edit_step"]
