"""The parts of any source as modules of diffusers and transformers, for `live.py`.

A folder in diffusers' layout is loaded by the references themselves. From an official layout, whose keys
are this project's, the tensors go through diffusers' own single-file converters into modules of the sizes
that the shapes tell. Either way none of this project's key tables decides what the references hold.
"""

from functools import partial
from pathlib import Path

import reference_models as models
import reference_shapes as shapes
import reference_text as text
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from weights import Source
from weights.load import build_component

FOLDERS = {"mmdit": "transformer", "vae": "vae", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
FOLDERS |= {"t5": "text_encoder_3"}
CLASSES = {"mmdit": SD3Transformer2DModel, "vae": AutoencoderKL, "t5": T5EncoderModel}
CLASSES |= dict.fromkeys(("clip_l", "clip_g"), CLIPTextModelWithProjection)


def load(source: Source, part: str, dtype: torch.dtype) -> nn.Module:
    """One part as the reference's module, in eval mode."""
    component = source.component(part)
    if component.unit.name.startswith(f"{FOLDERS[part]}/"):
        folder = component.unit.folder.path(component.unit.name).parent
        for file in [*component.files, f"{FOLDERS[part]}/config.json"]:
            component.unit.folder.path(file)  # a file of the Hub is downloaded here
        model = CLASSES[part].from_pretrained(folder, torch_dtype=torch.float32)
    else:
        model = _from_official(part, component)
    return model.to(dtype).eval().requires_grad_(False)


def _from_official(part: str, component) -> nn.Module:
    """Build the reference's module by the sizes this project read, and fill it through its converters."""
    config = build_component(component).config
    tensors = {name: tensor.float() for name, tensor in component.tensors().items()}
    build = {"mmdit": _transformer, "vae": _autoencoder, "t5": _t5}.get(part, _clip)
    with torch.device("meta"):
        model = build(config)
    if part == "mmdit":
        tensors = convert_sd3_transformer_checkpoint_to_diffusers(tensors)
    elif part == "vae":
        tensors = convert_ldm_vae_checkpoint(tensors, model.config)
    elif part == "t5":
        tensors.setdefault("encoder.embed_tokens.weight", tensors["shared.weight"])
    else:
        if part == "clip_l":  # the official file has none, and the references put the identity there
            tensors["text_projection.weight"] = torch.eye(config.dim)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    model = model.to_empty(device="cpu")
    for module in model.modules():  # what is computed rather than stored
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    model.load_state_dict(tensors)
    return model


def _transformer(config) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        num_layers=config.depth,
        attention_head_dim=config.dim // config.num_heads,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.context_dim,
        caption_projection_dim=config.dim,
        pooled_projection_dim=config.pooled_dim,
        pos_embed_max_size=config.pos_embed_size,
        dual_attention_layers=config.dual_blocks,
        qk_norm="rms_norm" if config.qk_norm else None,
    )


def _autoencoder(config) -> AutoencoderKL:
    levels = len(config.channels)
    return AutoencoderKL(
        block_out_channels=config.channels,
        layers_per_block=config.num_res_blocks,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=config.latent_channels,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip(config) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            projection_dim=config.projection_dim or config.dim,
            hidden_act=config.activation,
            bos_token_id=config.vocab_size - 2,
            eos_token_id=config.vocab_size - 1,
        )
    )


def _t5(config) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.depth,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.buckets,
            feed_forward_proj="gated-gelu",
        )
    )


def tokenizer(source: Source, part: str):
    """The reference's tokenizer of one encoder."""
    folder = source.tokenizer(part)
    if part == "t5":
        return T5TokenizerFast.from_pretrained(folder)
    loaded = partial(CLIPTokenizer.from_pretrained, folder, model_max_length=77)
    return loaded() if part == "clip_l" else loaded(pad_token="!")


def scheduler(source: Source) -> FlowMatchEulerDiscreteScheduler:
    """The source's scheduler where it has a file of it, else SD3.5's."""
    file = "scheduler/scheduler_config.json"
    if file in source.folder.files():
        return FlowMatchEulerDiscreteScheduler.from_pretrained(source.folder.path(file).parent)
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def random_folder(folder: Path, layout: str, seed: int = 0) -> None:
    """Write a small random model, with heads of the released width, in diffusers' or the official layout."""
    sizes = shapes.TransformerSizes(128, 4, 2, qk_norm=True, dual_blocks=(0, 1), pos_embed_size=16)
    mmdit, transformer = models.transformer(sizes, seed)
    autoencoder, vae = models.autoencoder(shapes.VAESizes(), seed + 1)
    pipe = text.pipeline(folder / "vocabularies", transformer, vae)
    if layout == "diffusers":
        pipe.save_pretrained(folder)
        return
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in mmdit.items()}
    whole |= {f"first_stage_model.{name}": tensor for name, tensor in autoencoder.items()}
    save_file(whole, folder / "sd3.5_medium.safetensors")
    (folder / "text_encoders").mkdir()
    for name, part in text.text_parts(folder / "vocabularies").items():
        save_file(part["weights"], folder / "text_encoders" / f"{name}.safetensors")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        getattr(pipe, name).save_pretrained(folder / name)
