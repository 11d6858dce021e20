"""Training with compiled blocks: takes a minute of a C++ compiler on a processor."""

import csv

import pytest

from sd35 import train_lora


@pytest.mark.compile
@pytest.mark.parametrize("more", [{}, {"checkpoint_blocks": True}], ids=["plain", "checkpointed"])
def test_compiled_blocks_learn_what_blocks_learn(
    model_folder, pictures, settings, cache, tmp_path, more
) -> None:
    """One size of pictures: each size is a graph of its own."""
    rows = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        given = settings | more | {"compile": compiled, "buckets": False, "caption_dropout": 0.0}
        train_lora(model_folder, pictures, folder, places={"cache": cache}, **given)
        with (folder / "log.csv").open() as file:
            rows.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert rows[1] == pytest.approx(rows[0], rel=1e-4)
    assert len(rows[1]) == settings["steps"]
