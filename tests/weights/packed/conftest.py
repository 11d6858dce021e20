"""GGUF files of the tests' own making."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors as GGUF: matrices of the stack in a kind of blocks, the rest in float32."""
    gguf = pytest.importorskip("gguf")

    def write(
        tensors: Mapping[str, Tensor],
        kind: str = "Q8_0",
        architecture: str | None = "sd3",
        stack: str = "_blocks.",
    ) -> Path:
        path = tmp_path / f"{kind}.gguf"
        writer = gguf.GGUFWriter(path, architecture or "none")
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and stack in name:
                of = gguf.GGMLQuantizationType[kind]
                data = gguf.quants.quantize(tensor.float().numpy(), of)
                writer.add_tensor(name, data, raw_dtype=of)
            else:
                writer.add_tensor(name, tensor.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def packed_bytes(kind: str, rows: int, blocks: int, nbytes: int) -> Tensor:
    """Random bytes: every pattern of scales and numbers."""
    generator = torch.Generator().manual_seed(sum(map(ord, kind)))
    return torch.randint(0, 256, (rows, blocks * nbytes), generator=generator, dtype=torch.uint8)
