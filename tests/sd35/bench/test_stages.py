"""The stages of `sd35 bench`, alone and beside another implementation."""

import pytest
import torch

from mmdit import MMDiT, MMDiTConfig
from sd35.bench import Ceilings, as_row, header, load_peer, of_source, of_variant, run_stages, stages
from sd35.bench.clock import Timing
from sd35.bench.parts import random_module
from sd35.bench.stages import Measured
from sd35.errors import SettingsError

CPU = torch.device("cpu")

PEER = """
NAME = "nothing 1.0"
IMPORT = "pass"
def nothing(*given): return None
def transformer(config, device, dtype): return nothing
def step(config, device, dtype): return nothing
def autoencoder(config, device, dtype): return nothing, nothing
def encoder(config, device, dtype): return nothing
def loading(config, device, dtype, folder): return nothing
"""


def test_every_stage_of_a_model_beside_a_peer(model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "OURS", "pass")  # what a whole import takes is not asked here
    monkeypatch.setattr(stages, "HOST_BLOCKS", 2)
    (tmp_path / "nothing_peer.py").write_text(PEER)
    peer = load_peer(str(tmp_path / "nothing_peer.py"))
    parts = of_source(model_folder, CPU, None, None)
    found = list(run_stages(parts, 1, peer))
    assert [one.name.partition(",")[0] for one in found] == [
        "transformer",
        "a step's Python",
        "VAE decode",
        "VAE encode",
        "CLIP-L",
        "CLIP-G",
        "T5",
        "load the transformer",
        "import",
    ]
    assert all(one.theirs is not None for one in found)
    assert [one.name.partition(",")[0] for one in found if not one.flops] == [
        "a step's Python",
        "load the transformer",
        "import",
    ]
    columns = header(beside=True).splitlines()[0].count("|")
    assert all(as_row(one, Ceilings(1e12, 1e10)).count("|") == columns for one in found)


def test_a_row_compares_seconds_of_the_processor_pair_by_pair() -> None:
    ours = Timing(wall=(9.0, 9.0, 9.0), cpu=(1.0, 2.0, 4.0), peak=2_000_000, on_cpu=True)
    theirs = Timing(wall=(9.0, 9.0, 9.0), cpu=(3.0, 4.0, 4.0), peak=None, on_cpu=True)
    row = as_row(Measured("stage", ours, theirs, 10**9), Ceilings(1e9, 1.0))
    assert row == (
        "| stage | 9 s (9 to 9) | 2 s (1 to 4) | 1.0 | 50% | 2 MB | 9 s (9 to 9) | 4 s (3 to 4) |  "
        "| 2.00 | 1.00 to 3.00 |"
    )


def test_fewer_blocks_are_a_part_of_each_kind() -> None:
    config = of_variant("medium", torch.device("meta"), torch.bfloat16, (256,), blocks=4).mmdit().config
    assert (config.depth, config.dual_blocks) == (4, (0, 1))


def test_random_weights_give_velocities() -> None:
    config = MMDiTConfig(dim=64, depth=2, num_heads=1, pos_embed_size=4, context_dim=64, pooled_dim=64)
    model = random_module(lambda: MMDiT(config), CPU, torch.bfloat16)
    given = torch.randn(1, 16, 4, 4), torch.rand(1), torch.randn(1, 3, 64), torch.randn(1, 64)
    velocity = model(*given)
    assert velocity.isfinite().all()
    assert velocity.std() > 1e-3


@pytest.mark.parametrize(
    ("variant", "blocks", "message"),
    [("huge", 4, "sizes must be one of medium, large"), ("medium", 0, "blocks must be at least 1")],
)
def test_bad_sizes(variant, blocks, message) -> None:
    with pytest.raises(SettingsError, match=message):
        of_variant(variant, CPU, torch.bfloat16, (256,), blocks)


def test_a_peer_that_is_not_there(tmp_path) -> None:
    with pytest.raises(SettingsError, match=r"wish_peer\.py to compare with"):
        load_peer("wish")
    (tmp_path / "poor.py").write_text("import a_library_that_nobody_has")
    with pytest.raises(SettingsError, match=r"poor\.py cannot be compared with: No module named"):
        load_peer(str(tmp_path / "poor.py"))
