"""What processes compute together, written to a folder for the test that starts them or computes it alone.

python tests/sd35/train/several.py MODEL PICTURES FOLDER 4,four,cut 2,two,train,sample killed

forks four processes, then two, each as torchrun would tell it that it is, and then two more by what torchrun
itself calls: importing is done once.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch._dynamo  # which an optimizer imports: before processes part
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import start_processes

import flow
import sd35
from mmdit import MMDiT, MMDiTConfig
from sd35.cli import main
from sd35.parallel import shared_branches, split_tokens
from sd35.train.loop import Learner
from sd35.train.shard import split_heads

BIG = MMDiTConfig(
    dim=256, depth=2, num_heads=4, pos_embed_size=8, context_dim=32, pooled_dim=24, dual_blocks=(0,)
)
STEPS, CUT = 10, 4
GIVEN = {"batch_size": 4, "schedule": "constant"}
KINDS = {
    "lora": (sd35.train_lora, torch.float64, {"rank": 2}),
    "full": (sd35.train_full, torch.float64, {}),
    "lora32": (sd35.train_lora, torch.float32, {"rank": 2, "validate_every": STEPS}),
    "full32": (sd35.train_full, torch.float32, {"ema": 0.9, "validate_every": STEPS}),
}
"""What is trained, in what, and with what besides; learning rates are the ways' own."""


def places(folder: Path, dtype: torch.dtype) -> dict:
    return {"cache": folder / f"cache-{dtype}", "dtype": dtype, "device": "cpu"}


def train(model: Path, pictures: Path, folder: Path, name: str) -> None:
    """LoRAs and all weights, in float64 and float32: gradients and weights of the first step and the last."""
    for kind, (way, dtype, more) in KINDS.items():
        with recorded(folder / f"{kind}-{name}.safetensors"):
            way(
                model,
                pictures,
                folder / f"{kind}-{name}",
                places=places(folder, dtype),
                steps=STEPS,
                **GIVEN,
                **more,
            )


def cut(model: Path, pictures: Path, folder: Path, name: str, steps: int = CUT) -> None:
    """The same in float64, cut off after some steps; or after more of them, going on with what is there."""
    for kind in ("lora", "full"):
        way, dtype, more = KINDS[kind]
        where = places(folder, dtype) | {"resume": steps > CUT}
        way(model, pictures, folder / f"{kind}-{name}", places=where, steps=steps, **GIVEN, **more)


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Write the gradients of the first step and of the last, and the weights after each."""
    found: dict[str, Tensor] = {}
    update = Learner.update

    def watched(self, step: int) -> None:
        if step in (1, STEPS):
            keep(f"gradient {step}", {name: one.grad for name, one in self.masters.wide.items()})
        update(self, step)
        if step in (1, STEPS):
            keep(f"weight {step}", self.masters.wide)

    def keep(what: str, tensors) -> None:
        for name, tensor in tensors.items():
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            found[f"{what}/{name}"] = whole.detach().clone()

    Learner.update = watched
    try:
        yield
    finally:
        Learner.update = update
    if not dist.is_initialized() or dist.get_rank() == 0:
        save_file(found, path)


@torch.no_grad()
def sample(model: Path, _: Path, folder: Path, name: str) -> None:
    """Ten steps of a picture by Ulysses, by tensor parallelism, and with the halves of guidance shared."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sigmas, found = flow.sigmas(STEPS), {}
    for dtype in (torch.float64, torch.float32):
        source = torch.Generator().manual_seed(0)
        mmdit = MMDiT(BIG)
        for parameter in mmdit.parameters():
            parameter.normal_(0, 0.1, generator=source)
        mmdit = mmdit.to(dtype)
        noise = torch.randn(1, 16, 8, 8, generator=source).to(dtype)
        given = [torch.randn(1, 5, 32, generator=source), torch.randn(1, 24, generator=source)]
        context, pooled = (one.to(dtype) for one in given)

        def draw(mmdit=mmdit, noise=noise, context=context, pooled=pooled) -> Tensor:
            return flow.solve(lambda x, sigma: mmdit(x, sigma, context, pooled), noise, sigmas)

        found[f"alone {dtype}"] = draw()
        with split_tokens(mmdit, mesh):
            found[f"ulysses {dtype}"] = draw()
        found[f"back {dtype}"] = draw()
        split_heads(mmdit, mesh)
        found[f"tensor {dtype}"] = draw()

        pipe = sd35.load(model, dtype=dtype)
        sources = [torch.Generator().manual_seed(seed) for seed in (1, 2)]  # two pictures: four rows
        noise = sd35.draw_noise(sources, (16, 4, 4)).to(dtype)
        for what, conditions in (("guided", []), ("shared", [shared_branches(mesh)])):
            velocity = pipe.velocity("a red circle", sigmas=sigmas, conditions=conditions)
            found[f"{what} {dtype}"] = flow.solve(velocity, noise, sigmas)
    if dist.get_rank() == 0:
        save_file({key: one.contiguous() for key, one in found.items()}, folder / f"{name}.safetensors")


def go_on(model: Path, pictures: Path, folder: Path, name: str) -> None:
    """Go on with copies of what four processes have saved."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        for kind in ("lora", "full"):
            shutil.copytree(folder / f"{kind}-four", folder / f"{kind}-four then {name}")
    if dist.is_initialized():
        dist.barrier()
    cut(model, pictures, folder, f"four then {name}", STEPS)


def be(rank: int, count: int, given: list[Path], name: str, whats: list[str]) -> None:
    """Be one of several processes, and do one thing after the other."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    store = f"file://{given[-1].resolve()}/store-{name}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    for what in whats:
        globals()[what](*given, name)
    dist.destroy_process_group()


def killed(*given: Path) -> None:
    """Train in two processes of torchrun's, of which the main one is killed."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )  # `torchrun --standalone --nproc-per-node 2`, but for forking
    try:
        elastic_launch(config, die)(*given)
    except ChildFailedError:
        return
    raise AssertionError("torchrun does not tell that a process was killed")


def die(model: Path, pictures: Path, folder: Path) -> None:
    """Be one of them; what it says goes into a file."""
    os.dup2(os.open(folder / "killed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    update = Learner.update

    def dies(self, step: int) -> None:
        if step == 3 and self.world.is_main:
            os.kill(os.getpid(), signal.SIGKILL)
        update(self, step)

    Learner.update = dies
    where = f"-m {model} --data {pictures} -o {folder / 'killed'} --device cpu"
    settings = "--steps 8 --batch-size 2 --save-every 2 --schedule constant"
    sys.exit(main(["train", "full", *where.split(), *settings.split()]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    paths = [Path(one) for one in sys.argv[1:4]]
    for group in sys.argv[4:]:
        if group == "killed":
            killed(*paths)
        else:
            count, name, *whats = group.split(",")
            start_processes(be, (int(count), paths, name, whats), nprocs=int(count), start_method="fork")
