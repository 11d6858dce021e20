"""Run a reference model, keep activations by hooks, store everything with its provenance."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.models.normalization import RMSNorm
from reference_models import Tensors
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

PRECISIONS = ((torch.float32, ""), (torch.float64, "64"))
"""A dtype, and what the names of tensors computed in it end their first part with."""

Tap = tuple[str, Callable[[object], Mapping[str, Tensor]]]
"""A module's path in the reference, and what of its output is kept: suffix to tensor."""


@contextmanager
def float64_statistics() -> Iterator[None]:
    """Let the references' RMS norms compute in the dtype of their input, for a true float64 run."""
    originals = RMSNorm.forward, T5LayerNorm.forward

    def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return x if weight is None else x * weight

    RMSNorm.forward = lambda self, x: rms(x, self.weight, self.eps)
    T5LayerNorm.forward = lambda self, x: rms(x, self.weight, self.variance_epsilon)
    try:
        yield
    finally:
        RMSNorm.forward, T5LayerNorm.forward = originals


@contextmanager
def tapped(model: nn.Module, taps: Mapping[str, Tap]) -> Iterator[Tensors]:
    """Collect activations by forward hooks."""
    taken: Tensors = {}

    def keep(name: str, pick: Callable) -> Callable:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            taken.update({name + suffix: tensor.clone() for suffix, tensor in pick(output).items()})

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(keep(n, pick)) for n, (path, pick) in taps.items()
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def statistics(dtype: torch.dtype) -> AbstractContextManager[None]:
    """What a run in `dtype` needs around it."""
    return float64_statistics() if dtype == torch.float64 else nullcontext()


def whole(output: object) -> Tensors:
    """Keep the output as it is."""
    return {"": output[0] if isinstance(output, tuple) else output}


def both_precisions(
    model: nn.Module, taps: Mapping[str, Tap], call: Callable[[torch.dtype], Tensors]
) -> Tensors:
    """Run in float32 and in true float64: out/*, out64/*, and the activations of the latter, act64/*."""
    result: Tensors = {}
    for dtype, suffix in PRECISIONS:
        model.to(dtype)
        with statistics(dtype), tapped(model, taps if suffix else {}) as taken:
            outputs = call(dtype)
        result |= {f"act64/{name}": tensor for name, tensor in taken.items()}
        result |= {f"out{suffix}/{name}": tensor for name, tensor in outputs.items()}
    model.to(torch.float32)
    return result


def stored(weights: Tensors) -> Tensors:
    """Weights as they are stored: exact in a quarter of the bytes, as they were rounded before use."""
    result = {}
    for name, tensor in weights.items():
        small = tensor.to(torch.float16 if name == "pos_embed" else torch.float8_e4m3fn)
        if not torch.equal(small.float(), tensor):
            raise RuntimeError(f"{name} is not exact in {small.dtype}")
        result[f"weights/{name}"] = small
    return result


def save(folder: Path, name: str, tensors: Tensors, **config: object) -> None:
    """Write one file with its provenance."""
    packages = {package: version(package) for package in ("torch", "diffusers", "transformers")}
    config |= {"made_by": "tests/parity/make_reference.py", "made_with": packages}
    text = {"config": json.dumps(config)}  # one entry, as safetensors does not keep the order of several
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, text)
    print(f"{path.name:36} {len(tensors):4} tensors {path.stat().st_size / 1e3:8.1f} kB")
