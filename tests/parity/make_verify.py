"""Choose from the stored reference activations those that ship with the package, for `sd35 verify`.

    python tests/parity/make_verify.py

`make_reference.py` calls it, so that one run writes both. It copies tensors and computes nothing: the file
that ships says what these files say, and needs neither diffusers nor transformers to be made again.
"""

import json
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

TARGET = Path(__file__).parents[2] / "sd35" / "verify" / "reference.safetensors"

KEPT = {
    "mmdit_qknorm_dual": (
        "weights/*",
        *(f"in/{name}" for name in ("latents", "sigma", "sinusoids", "context", "pooled")),
        *(f"act64/{name}" for name in ("[xty]_embedder", "context_embedder", "final_layer")),
        *(f"act64/joint_blocks.?.{stream}" for stream in ("x", "context")),
        "out64/velocity",
    ),
    "vae": (
        "weights/*",
        "in/image",
        "in/latents",
        "act64/encoder.mid.*",
        "act64/decoder.mid.*",
        "act64/encoder.down.3",
        "out64/mean",
        "out64/logvar",
        "out64/decoded",
    ),
    "clip_l": ("weights/*", "in/ids", "out64/penultimate", "out64/pooled"),
    "clip_g": ("weights/*", "in/ids", "out64/penultimate", "out64/pooled"),
    "t5": ("weights/*", "in/ids", "out64/last"),
    "trajectory": (
        "ids/*",
        "in/noise",
        "in/sigmas",
        "in/sinusoids",
        "out64/velocity_guided",
        "out64/trajectory",
        "out/image",
    ),
    "schedules": ("shift3/steps28/sigmas",),
}
"""File to the names, or patterns of names, of what ships: what a stage begins with and what it gives."""


def write(folder: Path, target: Path = TARGET) -> None:
    """Copy the tensors of `KEPT`, each under its file's name, and the configs.

    Raises:
        RuntimeError: a pattern fits no tensor.
    """
    tensors: dict[str, Tensor] = {}
    configs: dict[str, object] = {}
    for name, patterns in KEPT.items():
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            configs[name] = json.loads(file.metadata()["config"])
            for pattern in patterns:
                found = [key for key in file.keys() if fnmatchcase(key, pattern)]  # noqa: SIM118
                if not found:
                    raise RuntimeError(f"{name} has no {pattern}")
                tensors |= {f"{name}/{key}": file.get_tensor(key) for key in found}
    save_file(tensors, target, {"config": json.dumps(configs)})
    print(f"{target.name:36} {len(tensors):4} tensors {target.stat().st_size / 1e3:8.1f} kB")


if __name__ == "__main__":
    write(Path(__file__).parent)
