"""The reference's text encoders, its assembled encodings, and a whole guided generation."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import reference_models as models
import reference_tokenizers as tokenizers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from reference_capture import both_precisions, save, statistics, stored, whole
from reference_models import Tensors
from torch import Tensor, nn

PROMPT = "a small red circle on the left of the blue square, on a white background"
PROMPTS = (PROMPT, "", "A RED circle (on the left:1.2) of 7 squares! " * 12)
SEEDS = {"clip_l": 21, "clip_g": 22, "t5": 23, "trajectory": 24}
CLIP_L = {"hidden_size": 16, "hidden_act": "quick_gelu"}
CLIP_G = {"hidden_size": 32, "hidden_act": "gelu"}
STEPS, GUIDANCE, HEIGHT, WIDTH = 5, 4.5, 32, 48


def text_parts(folder: Path) -> dict[str, dict[str, object]]:
    """The three encoders, each with its tokenizer and its weights under official keys."""
    clip_folder, t5_folder = folder / "tokenizers" / "clip", folder / "tokenizers" / "t5"
    tokenizers.clip_files(clip_folder)
    parts: dict[str, dict[str, object]] = {}
    for name, sizes, pad in (("clip_l", CLIP_L, tokenizers.EOS), ("clip_g", CLIP_G, "!")):
        tokenizer = tokenizers.clip(clip_folder, pad)
        weights, model = models.clip(sizes, len(tokenizer), SEEDS[name], projection=name == "clip_g")
        parts[name] = {"tokenizer": tokenizer, "weights": weights, "model": model, "sizes": sizes}
    tokenizer = tokenizers.t5(t5_folder)
    weights, model = models.t5(len(tokenizer), SEEDS["t5"])
    return parts | {"t5": {"tokenizer": tokenizer, "weights": weights, "model": model, "sizes": {}}}


@torch.no_grad()
def encoder_files(folder: Path) -> None:
    """One file for each encoder: every layer over the prompt, as diffusers calls it."""
    for name, part in text_parts(folder).items():
        tokenizer, model = part["tokenizer"], part["model"]
        length = 48 if name == "t5" else 77
        ids = tokenizer(PROMPT, padding="max_length", max_length=length, return_tensors="pt").input_ids
        tensors = stored(part["weights"]) | {"in/ids": ids}
        tensors |= t5_run(model, ids) if name == "t5" else clip_run(model, ids)
        save(folder, name, tensors, seed=SEEDS[name], prompt=PROMPT, **part["sizes"])


def clip_run(model: nn.Module, ids: Tensor) -> Tensors:
    """A CLIP encoder's layers, penultimate state, last state and projected pooled state."""

    def call(dtype: torch.dtype) -> Tensors:
        output = model(ids, output_hidden_states=True)
        return {
            "penultimate": output.hidden_states[-2],
            "last": output.last_hidden_state,
            "pooled": output.text_embeds,  # CLIP-L's projection is the identity
        }

    taps = {"text_model.embeddings": ("text_model.embeddings", whole)}
    taps |= {path: (path, whole) for path in (f"text_model.encoder.layers.{i}" for i in range(3))}
    return both_precisions(model, taps, call)


def t5_run(model: nn.Module, ids: Tensor) -> Tensors:
    """A T5 encoder's blocks and its output."""
    taps = {path: (path, whole) for path in ("encoder.block.0", "encoder.block.1")}
    taps["shared"] = ("encoder.embed_tokens", whole)  # the same table under its other name
    result = both_precisions(model, taps, lambda dtype: {"last": model(ids).last_hidden_state})
    result["out64_float32_statistics/last"] = model.double()(ids).last_hidden_state
    model.float()
    return result


def pipeline(folder: Path, transformer: nn.Module, vae: nn.Module) -> StableDiffusion3Pipeline:
    """Everything joined as a user of diffusers has it."""
    parts = text_parts(folder)
    modules = {}
    for name, suffix in (("clip_l", ""), ("clip_g", "_2"), ("t5", "_3")):
        modules |= {
            f"text_encoder{suffix}": parts[name]["model"],
            f"tokenizer{suffix}": parts[name]["tokenizer"],
        }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=vae, **modules)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def trajectory_file(folder: Path, transformer: nn.Module, vae: nn.Module) -> None:
    """Token ids, encodings, and one short generation from prompt to pixels."""
    pipe = pipeline(folder, transformer, vae)
    tensors = ids_of(pipe) | encodings_of(pipe)
    noise = torch.randn(
        1, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(SEEDS["trajectory"])
    )
    states, velocities = [], []
    handle = transformer.register_forward_hook(lambda module, inputs, output: velocities.append(output[0]))

    def run(output_type: str):
        return pipe(
            PROMPT,
            negative_prompt="",
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=HEIGHT,
            width=WIDTH,
            latents=noise.clone(),
            max_sequence_length=256,
            output_type=output_type,
            callback_on_step_end=lambda pipe, i, t, state: states.append(state["latents"].clone()) or state,
        ).images

    latents = run("latent")
    trajectory = torch.cat(states)
    handle.remove()
    sigmas = pipe.scheduler.sigmas
    tensors |= {"in/noise": noise, "in/sigmas": sigmas}
    tensors["in/sinusoids"] = transformer.time_text_embed.time_proj(1000 * sigmas[:-1])
    tensors |= {"out/trajectory": trajectory, "out/latents": latents}
    tensors["out/velocity_uncond"], tensors["out/velocity_cond"] = velocities[0].chunk(2)
    z = latents / vae.config.scaling_factor + vae.config.shift_factor
    tensors["out/image"] = vae.decode(z, return_dict=False)[0]
    tensors["out/pixels"] = torch.from_numpy(np.array(run("pil")[0]))
    tensors |= float64_trajectory(transformer, tensors)
    weights = ["mmdit_qknorm_dual", "vae", "clip_l", "clip_g", "t5"]
    settings = {"prompts": PROMPTS, "steps": STEPS, "guidance_scale": GUIDANCE, "shift": 3.0}
    save(folder, "trajectory", tensors, weights=weights, seed=SEEDS["trajectory"], **settings)


def ids_of(pipe: StableDiffusion3Pipeline) -> Tensors:
    """What each tokenizer makes of the prompts, padded and cut as the pipeline does."""
    lengths = {
        "clip_l": (pipe.tokenizer, 77),
        "clip_g": (pipe.tokenizer_2, 77),
        "t5": (pipe.tokenizer_3, 256),
    }
    return {
        f"ids/{name}": tokenizer(
            list(PROMPTS), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        for name, (tokenizer, length) in lengths.items()
    }


def encodings_of(pipe: StableDiffusion3Pipeline) -> Tensors:
    """The assembled context and pooled of prompt and negative prompt; the long prompt's pooled alone."""
    context, _, pooled, _ = pipe.encode_prompt(
        list(PROMPTS), None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=256
    )
    return {"out/context": context[:2], "out/pooled": pooled}


def float64_trajectory(transformer: nn.Module, tensors: Tensors) -> Tensors:
    """The same generation in float64 from the same encodings, sigmas and noise.

    The scheduler casts its state to float32, so its formula stands here: x + (σ' - σ) v.
    """
    transformer.double()
    context, pooled = tensors["out/context"].double(), tensors["out/pooled"][:2].double()
    x, sigmas, states = tensors["in/noise"].double(), tensors["in/sigmas"], []
    guided = None
    with statistics(torch.float64):
        for sigma, sigma_next in pairwise(sigmas):
            timestep = (1000 * sigma).expand(2)
            both = transformer(x.repeat(2, 1, 1, 1), context, pooled, timestep, return_dict=False)[0]
            cond, uncond = both.chunk(2)
            velocity = uncond + GUIDANCE * (cond - uncond)
            guided = velocity if guided is None else guided
            x = x + (sigma_next.double() - sigma.double()) * velocity
            states.append(x)
    transformer.float()
    return {"out64/velocity_guided": guided, "out64/trajectory": torch.cat(states)}
