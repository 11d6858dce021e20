"""What is given to be inverted or edited, the settings that it came from, and whether they fit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from flow import Closeness, Companion
from textenc.prompt import PromptLike, as_prompts
from vae.image import to_tensor

from .errors import SettingsError
from .settings import SIZE_UNIT, Settings
from .state import State

if TYPE_CHECKING:
    from .pipeline import Pipeline

FLOW = (
    "prompts",
    "negative",
    "guidance_scale",
    "guidance",
    "steps",
    "solver",
    "solver_options",
    "schedule",
    "schedule_shift",
    "policy",
    "missing",
)
"""The settings that decide where a solver goes; the rest decide where it begins, and how fast."""

ENCODERS = ("t5", "text_encoders_source", "clip_l_source", "clip_g_source", "t5_source")
"""What a picture was made with that decides where a solver goes, beside the model."""


def opened(
    data: Tensor | Image.Image | State,
    prompt: PromptLike | Sequence[PromptLike] | None,
    companion: Companion | None,
    given: Mapping[str, Any],
) -> tuple[Tensor | Image.Image, Settings, Companion | None, Settings | None]:
    """What is to be inverted and how it was made, from plain arguments or from a saved state.

    Args:
        data: pictures, latents, or a state, which brings its settings and its companion.
        prompt: of the generation; None leaves it to the state.
        companion: of a reversible solver; None leaves it to the state.
        given: other settings; they change what they name in those of a state.

    Returns:
        Pictures or latents, the settings, the companion if any, and the saved settings if any.

    Raises:
        SettingsError: a state without latents, no prompt at all, or settings out of range.
    """
    given = dict(given)
    if "negative" in given:
        (given["negative"],) = as_prompts(given["negative"])
    if prompt is not None:
        given["prompts"] = as_prompts(prompt)
    if isinstance(data, State):
        if data.latents is None:
            raise SettingsError("this state holds noise and no latents: there is nothing to invert")
        return data.latents, replace(data.settings, **given), companion or data.companion, data.settings
    if prompt is None:
        raise SettingsError("which prompt was the picture drawn from? Only a saved state knows by itself")
    count = 1 if isinstance(data, Image.Image) else len(data)
    given.setdefault("images_per_prompt", count if len(given["prompts"]) == 1 else 1)
    given.setdefault("seed", None)
    return data, Settings(**given), companion, None


def differences(saved: Settings, settings: Settings, noise: Closeness | None = None) -> tuple[str, ...]:
    """One line for each setting that makes another flow of the saved one, and one for what that cost.

    Args:
        saved: of the generation.
        settings: of the inversion.
        noise: how near the noise that was found is to that of the generation, where this is known.
    """
    names = [name for name in FLOW if getattr(saved, name) != getattr(settings, name)]
    lines = [
        f"{name.replace('_', ' ')}: not what the picture was drawn with. That is another flow, and leads to "
        "other noise: it draws this picture under these settings, but is not what the picture came from"
        for name in names
    ]
    made = {name: (saved.made_with.get(name), settings.made_with.get(name)) for name in ENCODERS}
    lines += [
        f"{name.replace('_', ' ')}: {was or 'none'} when the picture was drawn, {now or 'none'} here. "
        + ("That" if name == "t5" else "Unless these are the same weights, that")
        + " is another flow"
        for name, (was, now) in {"model": (saved.model, settings.model), **made}.items()
        if was != now
    ]
    if lines and noise is not None:
        lines.append(
            f"so the noise found is at {noise.total_psnr:.1f} dB and a cosine of {noise.total_cosine:.2f} to "
            "that of the generation; invert without the differences to compare"
        )
    return tuple(lines)


def checked(
    pipe: "Pipeline", data: Tensor | Image.Image, settings: Settings
) -> tuple[Tensor | None, Tensor | None, Settings]:
    """Tell pictures from latents, and see that they are those of the settings.

    Returns:
        The image or None, the latents or None, and the settings with the size filled in.
    """
    tensor = to_tensor(data) if isinstance(data, Image.Image) else data
    channels = pipe.mmdit.config.channels
    if tensor.ndim != 4 or tensor.shape[1] not in (3, channels) or not tensor.is_floating_point():
        raise SettingsError(
            f"expected pictures (B, 3, H, W) or latents (B, {channels}, h, w), "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    is_image = tensor.shape[1] == 3
    height, width = (side * (1 if is_image else pipe.vae.config.factor) for side in tensor.shape[2:])
    if height % SIZE_UNIT or width % SIZE_UNIT:
        raise SettingsError(
            f"a picture of {width} x {height} is none of this model's: its sides must be multiples of "
            f"{SIZE_UNIT}. vae.image.fit scales and crops, but no generation ended there"
        )
    if (settings.width or width, settings.height or height) != (width, height):
        raise SettingsError(
            f"the settings are those of {settings.width} x {settings.height}, and this has {width} x {height}"
        )
    if len(tensor) != settings.images:
        raise SettingsError(f"the settings are those of {settings.images} pictures, got {len(tensor)}")
    settings = pipe.complete(replace(settings, width=width, height=height))
    tensor = tensor.detach().float().to(pipe.device)
    return (tensor, None, settings) if is_image else (None, tensor, settings)
