"""How a transformer is spread over processes, by FSDP2 or tensor parallelism; the model knows nothing of it.

FSDP2 (`fully_shard`, arXiv:2304.11277): each process keeps a part of every weight, of its gradient and of the
optimizer's memory, and a block is whole only while it computes. Tensor parallelism (Megatron-LM,
arXiv:1909.08053): each process has some heads of every attention and some columns of every MLP.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from mmdit import MMDiT
from mmdit.blocks import Attention

from ..errors import SettingsError
from ..saved.write import written

WHOLE = "model-00001-of-00001.safetensors"
"""What torch calls the file that it joins shards into."""


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes in a row."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard_weights(mmdit: MMDiT, mesh: DeviceMesh, dtype: torch.dtype) -> MMDiT:
    """Spread weights over processes, block by block, as float32 masters that are computed with in `dtype`.

    A block is widened and spread before the next is touched. So a transformer whose tensors are mapped from a
    file is never in memory whole.

    Args:
        mmdit: with the same weights in every process, on any device.
        mesh: of the processes.
        dtype: of the network's arithmetic; gradients are summed in float32 at least.
    """
    wide = torch.promote_types(dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=wide)
    for block in mmdit.joint_blocks:
        fully_shard(block.to(wide), mesh=mesh, mp_policy=policy)
    fully_shard(mmdit.to(wide), mesh=mesh, mp_policy=policy)
    mmdit.pos_embed = mmdit.pos_embed.to(mesh.device_type, dtype)  # whose dtype is that of the arithmetic
    return mmdit


def save_sharded(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors that are spread over processes into one safetensors file, whole or not at all.

    Every process writes what it has, and the parts are joined on disk: none needs memory for all.
    All processes call this together.
    """
    folder = path.with_name(f".{path.stem}-shards")
    if dist.get_rank() == 0 and folder.exists():
        shutil.rmtree(folder)
    dist.barrier()
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=True)
    # A single number loses its value where torch joins parts, and keeps it as a row of one.
    rows = {name: one.reshape(1) if one.ndim == 0 else one for name, one in tensors.items()}
    save(rows, storage_writer=writer)
    dist.barrier()
    if dist.get_rank() == 0:
        with written(path, overwrite=True) as temporary:
            _describe(folder / WHOLE, temporary, metadata or {})
        shutil.rmtree(folder)
    dist.barrier()


def _describe(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy a safetensors file and put metadata into its header, for which torch's writer has no place."""
    with source.open("rb") as file, target.open("wb") as copy:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        told = json.dumps({"__metadata__": {"format": "pt", **metadata}} | header).encode()
        told += b" " * (-len(told) % 8)  # that tensors stay aligned
        copy.write(len(told).to_bytes(8, "little") + told)
        shutil.copyfileobj(file, copy, 1 << 24)


@torch.no_grad()
def split_heads(mmdit: MMDiT, mesh: DeviceMesh) -> MMDiT:
    """Spread attention heads and MLP columns over processes: tensor parallelism.

    In each block qkv and fc1 are split by rows and proj and fc2 by columns, after which the parts are summed:
    two reductions a stream. Rows of the fused qkv are put in the order of processes first, so that each has
    q, k and v of its own heads. Modulation, norms and embeddings are whole everywhere.

    Args:
        mmdit: with the same weights in every process.
        mesh: of the processes.

    Raises:
        SettingsError: the heads cannot be shared evenly: SD3.5-large has 38, so 2 or 19 processes.
    """
    size, heads = mesh.size(), mmdit.config.num_heads
    if heads % size:
        raise SettingsError(f"{heads} heads cannot be shared by {size} processes")
    for block in mmdit.joint_blocks:
        plan: dict[str, Any] = {}
        for path, module in block.named_modules():
            if isinstance(module, Attention):
                _by_process(module.qkv, size)
                module.num_heads = heads // size
                plan[f"{path}.qkv"] = ColwiseParallel()
                plan[f"{path}.proj"] = RowwiseParallel()
            elif path.endswith(".mlp"):
                plan |= {f"{path}.fc1": ColwiseParallel(), f"{path}.fc2": RowwiseParallel()}
        known = dict(block.named_modules())
        parallelize_module(block, mesh, {path: how for path, how in plan.items() if path in known})
    return mmdit


def _by_process(qkv: nn.Module, size: int) -> None:
    """Reorder the rows q | k | v as q₁ k₁ v₁ | q₂ k₂ v₂ | ..., one group a process."""
    for parameter in qkv.parameters():
        parts = parameter.unflatten(0, (3, size, -1))  # q, k or v; process; rows of its heads
        parameter.copy_(parts.transpose(0, 1).flatten(0, 2).clone())
