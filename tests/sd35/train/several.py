"""What two or more processes compute together, written to a folder for the test that starts them.

torchrun --nproc-per-node 2 tests/sd35/train/several.py MODEL PICTURES FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

import flow
import sd35
from mmdit import MMDiT, MMDiTConfig
from sd35.parallel import shared_branches, split_tokens
from sd35.train.shard import split_heads

BIG = MMDiTConfig(
    dim=256, depth=2, num_heads=4, pos_embed_size=8, context_dim=32, pooled_dim=24, dual_blocks=(0,)
)
STEPS = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "schedule": "constant", "validate_every": 3}


def train(model: Path, pictures: Path, folder: Path, name: str) -> None:
    """A LoRA, and all weights, in float64; and all weights in float32, in two parts."""
    places = {"cache": folder / "cache", "dtype": torch.float64, "device": "cpu"}
    sd35.train_lora(model, pictures, folder / f"lora-{name}", rank=2, places=places, **STEPS)
    sd35.train_full(model, pictures, folder / f"full-{name}", places=places, **STEPS)
    sd35.train_full(
        model,
        pictures,
        folder / f"single-{name}",
        places=places | {"dtype": torch.float32, "cache": None},
        ema=0.9,
        **STEPS,
    )


@torch.no_grad()
def sample(model: Path, folder: Path) -> None:
    """A velocity by tensor parallelism and by Ulysses, and a picture with its branches shared."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    source = torch.Generator().manual_seed(0)
    mmdit = MMDiT(BIG).double()
    for parameter in mmdit.parameters():
        parameter.normal_(0, 0.1, generator=source)
    latents = torch.randn(1, 16, 8, 8, generator=source).double()
    context, pooled = torch.randn(1, 5, 32, generator=source), torch.randn(1, 24, generator=source)
    given = latents, torch.tensor([0.4]), context.double(), pooled.double()
    alone = mmdit(*given)
    with split_tokens(mmdit, mesh):
        found = {"alone": alone, "ulysses": mmdit(*given)}
    found["back"] = mmdit(*given)
    found["tensor"] = split_heads(mmdit, mesh)(*given)

    pipe = sd35.load(model)
    sigmas = flow.sigmas(3)
    noise = sd35.draw_noise([torch.Generator().manual_seed(1)], (16, 4, 4))
    for name, conditions in (("guided", []), ("guided, shared", [shared_branches(mesh)])):
        velocity = pipe.velocity("a red circle", sigmas=sigmas, conditions=conditions)
        found[name] = flow.solve(velocity, noise, sigmas)
    if dist.get_rank() == 0:
        save_file({name: one.contiguous() for name, one in found.items()}, folder / "sampled.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, pictures, folder = map(Path, sys.argv[1:])
    train(model, pictures, folder, "several")
    sample(model, folder)
    dist.destroy_process_group()
