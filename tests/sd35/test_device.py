"""Devices and dtypes by name."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import sd35
from sd35 import SettingsError
from sd35.device import as_device, as_dtype, full_float32
from textenc import Encoding, Prompt


@pytest.fixture
def precision() -> Iterator[Any]:
    """Where torch keeps what float32 convolutions are computed in on NVIDIA's cards."""
    before = torch.backends.cudnn.conv.fp32_precision
    yield torch.backends.cudnn.conv
    torch.backends.cudnn.conv.fp32_precision = before


def test_names_become_devices() -> None:
    assert as_device("cpu") == torch.device("cpu")
    assert as_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(SettingsError, match="no kind of device 'gpu': use cpu"):
        as_device("gpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="has no cuda"):
        as_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert as_device("cuda:1") == torch.device("cuda:1")
    assert as_device("auto") == torch.device("cuda")
    with pytest.raises(SettingsError, match="no cuda:2: this machine has 2 CUDA devices"):
        as_device("cuda:2")


def test_names_become_dtypes() -> None:
    assert as_dtype("bfloat16") is torch.bfloat16
    assert as_dtype(None) is None
    with pytest.raises(SettingsError, match="dtype must be one of float32, bfloat16, float16; got 'int8'"):
        as_dtype("int8")


@pytest.mark.parametrize("before", ["tf32", "ieee", "none"])
def test_full_float32_lasts_as_long_as_its_block(before, precision) -> None:
    """Beside whoever compiles, and after an error."""
    precision.fp32_precision = before

    def inside() -> None:
        with full_float32():
            assert precision.fp32_precision != "tf32"
            assert torch.compile(torch.sin, backend="eager")(torch.zeros(1)) == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()
    assert precision.fp32_precision == before


def test_what_computes_in_float32_rounds_nothing_to_tf32(precision) -> None:
    """The transformer and both halves of the autoencoder, whoever calls them; and all that inverts."""
    pipe, seen = sd35.load("tiny", "cpu", text=False), []
    for conv in (pipe.mmdit.x_embedder.proj, pipe.vae.encoder.conv_in, pipe.vae.decoder.conv_in):
        conv.register_forward_pre_hook(lambda *_: seen.append(precision.fp32_precision))
    precision.fp32_precision = "tf32"
    config = pipe.mmdit.config
    context, pooled = torch.zeros(1, 2, config.context_dim), torch.zeros(1, config.pooled_dim)
    text = [Encoding(context, pooled, (Prompt(),), ((),), (), "reference")] * 2
    pipe.velocity(*text)(torch.zeros(1, 16, 4, 4), 0.5)
    pipe.encode(pipe.decode(torch.zeros(1, 16, 4, 4)))
    assert seen == ["ieee"] * 3
    with pipe.at_least(torch.float32):
        assert precision.fp32_precision == "ieee"
    assert precision.fp32_precision == "tf32"
