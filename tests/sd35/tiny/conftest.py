"""What the tests of the training data share."""

from pathlib import Path

import pytest
import torch

from sd35.tiny.vocabulary import write_tokenizers


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Of the tokenizers' files."""
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    return folder
