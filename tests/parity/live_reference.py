"""The parts of any source as modules of diffusers and transformers, for `live.py`.

What diffusers or transformers wrote, weights beside their config.json, is loaded by them. Other tensors go
into modules of the sizes that the shapes tell: under the names they have where those are diffusers', and
through diffusers' own single-file converters where they are official, which are this project's. Either way
none of this project's key tables decides what the references hold.
"""

from functools import partial
from pathlib import Path, PurePosixPath

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
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from weights import Source
from weights.build import build_component
from weights.component import Component
from weights.file import MappedFile

SAVED = ("diffusion_pytorch_model.", "model.")  # how the files begin that the references write
CLASSES = {"mmdit": SD3Transformer2DModel, "vae": AutoencoderKL, "t5": T5EncoderModel}
CLASSES |= dict.fromkeys(("clip_l", "clip_g"), CLIPTextModelWithProjection)


def load(source: Source, part: str, dtype: torch.dtype) -> nn.Module:
    """One part as the reference's module, in eval mode."""
    component = source.component(part)
    folder, path = component.unit.folder, PurePosixPath(component.unit.name)
    config = (path.parent / "config.json").as_posix()
    if path.name.startswith(SAVED) and config in folder.files():
        for file in (*component.files, config):
            folder.path(file)  # a file of the Hub is downloaded here
        model = CLASSES[part].from_pretrained(folder.path(str(path)).parent, torch_dtype=torch.float32)
    else:
        model = _from_tensors(part, component)
    return model.to(dtype).eval().requires_grad_(False)


def _from_tensors(part: str, component: Component) -> nn.Module:
    """Build the reference's module by the sizes this project read, and fill it."""
    config = build_component(component).config
    build = {"mmdit": _transformer, "vae": _autoencoder, "t5": _t5}.get(part, _clip)
    with torch.device("meta"):
        model = build(config)
    if component.layout == "diffusers":
        unit = component.unit
        tensors = {name: MappedFile(unit.folder.path(unit.files[name]))[name] for name in component.sources}
    else:
        tensors = _converted(part, component.tensors(), model)
    model = model.to_empty(device="cpu")
    for module in model.modules():  # what is computed rather than stored
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model


def _converted(part: str, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Official tensors under the reference's names."""
    if part == "mmdit":
        return convert_sd3_transformer_checkpoint_to_diffusers(tensors)
    if part == "vae":
        return convert_ldm_vae_checkpoint(tensors, model.config)
    if part == "t5":
        return {"encoder.embed_tokens.weight": tensors["shared.weight"], **tensors}
    if part == "clip_l":  # the official file has none, and the references put the identity there
        tensors["text_projection.weight"] = torch.eye(model.config.hidden_size)
    return tensors


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
