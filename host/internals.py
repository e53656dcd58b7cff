"""What the pack uses of ComfyUI: the one list of it, checked when the pack is loaded.

`tests/host/running/test_internals.py` keeps the list complete: the pack imports nothing of the host
that is not in it. What can only be seen on live objects is in LIVE, for people to read; the tests
on a real host check it.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

OLDEST = "0.3.75"


@dataclass(frozen=True)
class Use:
    """Names of one module that the pack uses, and what for.

    A name may say how it is called: first what is given by position, then, with "=", what is given
    by name. Methods are written without self.

    Attributes:
        module: The module.
        names: Its names, dotted where one lies in another.
        purpose: What they are for.
    """

    module: str
    names: tuple[str, ...]
    purpose: str


USES = (
    Use("comfy_api.latest", ("ComfyExtension", "io", "ui"), "nodes by the V3 API"),
    Use(
        "comfy_api.latest",
        ("InputImpl.VideoFromFile", "InputImpl.VideoFromComponents", "Types.VideoComponents"),
        "videos read and written frame by frame (host/video)",
    ),
    Use(
        "comfy.utils",
        ("common_upscale(samples, width, height, method, crop)",),
        "scaling frames as the host does",
    ),
    Use(
        "comfy.samplers",
        (
            "KSAMPLER(function)",
            "KSampler(model, steps=, device=, sampler=, scheduler=)",
            "KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS",
            "SAMPLER_NAMES",
            "SCHEDULER_NAMES",
            "sampler_object(name)",
            "process_conds(model, noise, conds, device, latents, seed=)",
        ),
        "inversion and edit run as one of the host's samplers, on its schedules, "
        "with its conditionings",
    ),
    Use(
        "comfy.sample",
        (
            "sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, latents, "
            "callback=, seed=)",
            "prepare_noise(latents, seed)",
        ),
        "loading the model and sampling",
    ),
    Use(
        "comfy.sampler_helpers",
        ("convert_cond(cond)", "prepare_mask(mask, shape, device)"),
        "the source's own prompt beside the edit's; local edits",
    ),
    Use(
        "comfy.k_diffusion.sampling",
        ("sample_euler(model, x, sigmas, extra_args, callback, disable)",),
        "sampling the source back",
    ),
    Use("comfy.model_sampling", ("CONST",), "knowing flow models"),
    Use(
        "comfy.patcher_extension",
        (
            "WrappersMP.OUTER_SAMPLE",
            "WrappersMP.PREPARE_SAMPLING",
            "WrappersMP.SAMPLER_SAMPLE",
            "WrappersMP.PREDICT_NOISE",
            "WrappersMP.CALC_COND_BATCH",
            "WrappersMP.DIFFUSION_MODEL",
            "WrappersMP.APPLY_MODEL",
            "CallbacksMP.ON_PRE_RUN",
        ),
        "the patch points of a run, from its begin to its end (host/runs/patching.py)",
    ),
    Use(
        "comfy.model_patcher",
        (
            "ModelPatcher(model, load_device=, offload_device=)",
            "ModelPatcher.clone()",
            "ModelPatcher.get_model_object(name)",
            "ModelPatcher.add_wrapper_with_key(kind, key, wrapper)",
            "ModelPatcher.remove_wrappers_with_key(kind, key)",
            "ModelPatcher.add_callback_with_key(kind, key, callback)",
            "ModelPatcher.remove_callbacks_with_key(kind, key)",
            "ModelPatcher.model_size()",
            "ModelPatcher.model_dtype()",
        ),
        "patching a clone of the user's model; models of our own",
    ),
    Use(
        "comfy.ldm.modules.attention",
        (
            "BasicTransformerBlock",
            "SpatialVideoTransformer",
            "attention_pytorch",
            "optimized_attention(q, k, v, heads, attn_precision=, transformer_options=)",
        ),
        "finding self-attention by structure (host/families/unet.py), refusing video models, "
        "the host's attention backend",
    ),
    Use(
        "comfy.ldm.modules.diffusionmodules.openaimodel",
        ("Downsample", "Upsample", "ResBlock"),
        "a UNet's levels (families/unet.py)",
    ),
    Use(
        "comfy.model_management",
        (
            "InterruptProcessingException",
            "OOM_EXCEPTION",
            "throw_exception_if_processing_interrupted()",
            "load_models_gpu(models, memory_required=, force_full_load=)",
        ),
        "interrupts, memory that runs out, loading models",
    ),
    Use(
        "comfy.model_management",
        (
            "get_torch_device()",
            "intermediate_device()",
            "unet_offload_device()",
            "vae_offload_device()",
            "is_device_cpu(device)",
            "get_free_memory(device)",
            "get_total_memory(device)",
            "extra_reserved_memory()",
            "dtype_size(dtype)",
        ),
        "devices, and how much fits on them (host/memory.py)",
    ),
    Use(
        "comfy.model_management",
        (
            "unet_dtype(model_params=, supported_dtypes=)",
            "unet_manual_cast(dtype, device, supported)",
            "should_use_bf16(device)",
        ),
        "the type to compute in",
    ),
    Use(
        "comfy.utils",
        (
            "ProgressBar(total)",
            "calculate_parameters(weights)",
            "load_torch_file(path, safe_load=)",
        ),
        "progress; weights of our own",
    ),
    Use(
        "comfy.cli_args", ("args",), "whether saved files may hold the workflow (disable_metadata)"
    ),
    Use(
        "latent_preview",
        (
            "get_previewer(device, latent_format)",
            "prepare_callback(model, steps)",
            "MAX_PREVIEW_RESOLUTION",
        ),
        "live previews",
    ),
    Use(
        "folder_paths",
        (
            "get_input_directory()",
            "get_output_directory()",
            "get_temp_directory()",
            "get_user_directory()",
            "models_dir",
            "annotated_filepath(name)",
            "filter_files_content_types(files, kinds)",
            "folder_names_and_paths",
            "get_save_image_path(prefix, folder)",
            "get_folder_paths(kind)",
            "get_filename_list(kind)",
            "get_full_path(kind, name)",
            "add_model_folder_path(kind, folder)",
        ),
        "where files lie",
    ),
    Use(
        "comfy_execution.utils",
        ("get_executing_context()",),
        "which node of which prompt runs (host/checkpoints)",
    ),
    Use(
        "comfy.sd",
        ("CLIP(target, embedding_directory=, parameters=)", "VAE(sd=, dtype=)"),
        "the embedded model (host/files/demo_model.py)",
    ),
    Use(
        "comfy.sd",
        ("load_lora_for_models(model, clip, lora, strength, clip_strength)",),
        "what Tune-A-Video Tuning learned",
    ),
    Use(
        "comfy.weight_adapter",
        ("WeightAdapterTrainBase", "adapter_maps"),
        "what Tune-A-Video Tuning learns",
    ),
    Use(
        "comfy.sd1_clip",
        ("SDClipModel", "SD1ClipModel", "SDTokenizer", "SD1Tokenizer"),
        "the embedded model's text encoder",
    ),
    Use(
        "comfy.supported_models",
        (
            "SD15",
            "SD3",
        ),
        "the embedded model's layout",
    ),
    Use(
        "comfy.supported_models_base",
        ("ClipTarget(tokenizer, encoder)",),
        "the embedded model's text encoder",
    ),
    Use("comfy.latent_formats", ("LatentFormat",), "the embedded model's latents"),
    Use("comfy.model_base", ("ModelType.V_PREDICTION",), "the embedded model predicts v"),
    Use(
        "comfy.model_base",
        ("SDXL", "SDXLRefiner"),
        "whether a prompt needs a pooled output (host/validation/prompts.py)",
    ),
    Use(
        "comfy.model_detection",
        ("detect_unet_config(weights, prefix)",),
        "the embedded model's layout",
    ),
)

# What only newer hosts have; it is used where it is there.
NEWER = {
    "comfy.model_management.is_oom": "memory that runs out in other forms than OOM_EXCEPTION",
    "comfy.model_management.in_training": "weights and activations stay for gradients",
    "comfy_extras.nodes_train.TrainGuider": "training",
    "comfy_api.latest.ComfyAPI": "telling the host which nodes have got another id",
}

# Imported only where it is used, because other nodes' modules take seconds to load. Tune-A-Video
# Tuning checks it when it runs.
TRAINING = (
    Use("comfy_extras.nodes_train", ("TrainSampler",), "the loop of Tune-A-Video Tuning"),
    Use(
        "comfy_extras.nodes_custom_sampler",
        ("Guider_Basic(model)",),
        "its guider, where the host has no TrainGuider",
    ),
)

# Attributes and keys of what the host hands over.
LIVE = {
    "ModelPatcher": "model, model_options, load_device; is_dynamic() and get_free_memory(device) "
    "on newer hosts (host/memory.py); patches, backup and hook_backup, "
    "by names of weights: what was put on them and what they were before "
    "(host/validation/fingerprint.py)",
    "a quantised layer": "convert_weight(), bound to it also in what "
    "ModelPatcher.get_key_patches() gives",
    "its model": "diffusion_model, model_config, latent_format, manual_cast_dtype, "
    "model_sampling, memory_required()",
    "model_sampling": "sigmas, percent_to_sigma(), noise_scaling() and what the host's samplers "
    "call",
    "guider": "conds, inner_model, model_options, model_patcher, original_conds; cfg of most",
    "model_options": "transformer_options, model_function_wrapper, context_handler, "
    "sampler_post_cfg_function; multigpu_thread_pool with devices, submit() and get_result() "
    "on newer hosts",
    "transformer_options": "uuids, activations_shape, patches, patches_replace, easycache, "
    "optimized_attention_override; what we hand over travels in it",
    "ControlNets that are patches": "image, encoded_image",
    "processed conditionings": "model_conds with cond and _copy_with(), mask, area, control, "
    "hooks, uuid",
    "controls": "previous_controlnet, cond_hint, cond_hint_original, extra_concat, "
    "extra_concat_orig, control_input, vae, get_control(); on newer hosts multigpu_clones",
    "a UNet": "input_blocks, middle_block, output_blocks; BasicTransformerBlock's attn1, attn2 "
    "and disable_self_attn; attention's heads, attn_precision, to_q, to_k, to_v, to_out, "
    "and comfy_attention on newer hosts; forward(x, context, value, mask, transformer_options)",
    "a transformer": "patch_size, pad_tokens_multiple, skip_mmdit, skip_dit and its lists of "
    "blocks; the blocks' classes, arguments and returns (host/families/transformer.py)",
    "server.PromptServer.instance": "loop, prompt_queue with get_history() and "
    "get_current_queue_volatile(), send_progress_text(text, node_id); there is none in scripts "
    "(host/progress.py)",
    "VAE": "encode(), decode(), spacial_compression_encode()",
    "VIDEO": "get_stream_source(), get_components() with images, audio and frame_rate; on newer "
    "hosts get_active_trim_window()",
}


def check_host(uses: tuple[Use, ...] = USES) -> None:
    """Checks that the host has all of it, and that it is called as the pack calls it.

    Args:
        uses: What to check.

    Raises:
        ImportError: If something is missing or is called otherwise; it names what, what for, and
            which ComfyUI is needed.
    """
    missing = [
        f"{use.module}.{name} ({use.purpose})"
        for use in uses
        for name in use.names
        if not _is_there(use.module, name)
    ]
    if not missing:
        return
    version = _version()
    listed = "; ".join(missing[:3]) + (f"; and {len(missing) - 3} more" if len(missing) > 3 else "")
    if _numbers(version) < _numbers(OLDEST):
        raise ImportError(
            f"TokenFlow needs ComfyUI {OLDEST} or newer, and this is {version}: update ComfyUI. "
            f"It lacks {listed}."
        )
    raise ImportError(
        f"TokenFlow does not know this ComfyUI, {version}, yet: update the pack. It lacks {listed}."
    )


def _is_there(module: str, name: str) -> bool:
    """Tells whether a name of a module exists, and can be called as it says."""
    path, called, arguments = name.removesuffix(")").partition("(")
    owner, _, _ = path.rpartition(".")
    try:
        found = resolve_name(f"{module}:{path}")
        is_method = bool(owner) and inspect.isclass(resolve_name(f"{module}:{owner}"))
    except (ImportError, AttributeError):
        return False
    return not called or _takes(
        found, [part.strip() for part in arguments.split(",") if part], is_method
    )


def _takes(function: Any, arguments: list[str], is_method: bool) -> bool:
    given = [argument for argument in arguments if not argument.endswith("=")]
    named = {argument.removesuffix("="): None for argument in arguments if argument.endswith("=")}
    try:
        inspect.signature(function).bind(*["self"] * is_method, *given, **named)
    except (TypeError, ValueError):
        return False
    return True


def _version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return "0"
    return str(__version__)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
