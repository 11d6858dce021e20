"""What the pipeline raises beside the errors of the packages it joins."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class SettingsError(ValueError):
    """Settings that do not work; the message says what was expected, what came and what to do.

    Attributes:
        setting: the name of the setting that the message begins with; "" where it begins otherwise.
        option: how the command line spells that setting; "" where it has no option.
    """

    def __init__(self, message: str, setting: str = "", option: str = "") -> None:
        super().__init__(message)
        self.setting, self.option = setting, option


class NonFiniteError(ArithmeticError):
    """A stage computed NaN or infinity, from which no picture is made.

    Attributes:
        stage: "text encoders", "transformer", "autoencoder (encoding)" or "autoencoder (decoding)".
        dtype: what the stage computes in.
        step: the number of the solver's step, for the transformer.
        sigma: the noise level, for the transformer.
    """

    def __init__(
        self,
        stage: str,
        dtype: "torch.dtype",
        count: str,
        *,
        step: int | None = None,
        sigma: float | None = None,
    ) -> None:
        self.stage, self.dtype, self.step, self.sigma = stage, dtype, step, sigma
        where = "" if step is None else f" at step {step}, sigma {sigma:.6g}"
        name = str(dtype).removeprefix("torch.")
        advice = (
            "a wider dtype may help (bfloat16 or float32)"
            if name == "float16"
            else "the weights or what was given may be damaged"
        )
        super().__init__(f"the {stage} gave {count} NaN or infinite values{where}, in {name}: {advice}")


def check_finite(
    tensor: "Tensor", stage: str, dtype: "torch.dtype", *, step: int | None = None, sigma: float | None = None
) -> "Tensor":
    """Pass `tensor` on.

    Raises:
        NonFiniteError: it holds NaN or infinity.
    """
    finite = tensor.isfinite()
    if not finite.all():
        count = f"{int((~finite).sum())} of {tensor.numel()}"
        raise NonFiniteError(stage, dtype, count, step=step, sigma=sigma)
    return tensor
