"""Devices and dtypes by name."""

import pytest
import torch

from sd35 import SettingsError
from sd35.device import as_device, as_dtype


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
