"""Adding rows up to the parts of a map, patches together or not."""

import pytest
import torch

from sd35.attention.quadrants import PARTS, QUADRANTS, Grid, add_rows, part_shape

TEXT = 4


def add_up(parts, probabilities, grid, heads, chunk=5):
    """All parts of a whole map (H, M + N, M + N), in chunks."""
    totals = {part: torch.zeros(heads, *part_shape(part, grid, TEXT)) for part in parts}
    for part, total in totals.items():
        queries = probabilities[:, :TEXT] if part.startswith("text") else probabilities[:, TEXT:]
        for start in range(0, queries.shape[1], chunk):
            rows = slice(start, min(start + chunk, queries.shape[1]))
            add_rows(total, rows, queries[:, rows], part, grid, TEXT)
    return totals


@pytest.fixture
def probabilities():
    return torch.rand(3, TEXT + 15, TEXT + 15, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)


def test_quadrants_are_the_map_cut_in_four(probabilities):
    got = add_up(QUADRANTS, probabilities, Grid(3, 5, 1), heads=3)
    text = torch.cat([got["text-text"], got["text-image"]], dim=2)
    image = torch.cat([got["image-text"], got["image-image"]], dim=2)
    assert torch.equal(torch.cat([text, image], dim=1), probabilities)
    mean = add_up(QUADRANTS, probabilities, Grid(3, 5, 1), heads=1)
    torch.testing.assert_close(mean["text-image"][0], got["text-image"].mean(dim=0))


def test_squares_average_queries_and_sum_keys(probabilities):
    grid = Grid(3, 5, 2)
    assert grid.cells == (2, 3)
    assert grid.index(torch.device("cpu")).reshape(3, 5).tolist() == [[0, 0, 1, 1, 2]] * 2 + [[3, 3, 4, 4, 5]]
    got = add_up(QUADRANTS, probabilities, grid, heads=3)
    whole = add_up(QUADRANTS, probabilities, Grid(3, 5, 1), heads=3)
    members = [[0, 1, 5, 6], [2, 3, 7, 8], [4, 9], [10, 11], [12, 13], [14]]
    for query, of_query in enumerate(members):
        torch.testing.assert_close(got["image-text"][:, query], whole["image-text"][:, of_query].mean(dim=1))
        for key, of_key in enumerate(members):
            expected = whole["image-image"][:, of_query][:, :, of_key].sum(dim=2).mean(dim=1)
            torch.testing.assert_close(got["image-image"][:, query, key], expected)
    for key, of_key in enumerate(members):
        torch.testing.assert_close(got["text-image"][:, :, key], whole["text-image"][:, :, of_key].sum(dim=2))
    rows = torch.cat([got["image-text"], got["image-image"]], dim=2).sum(dim=2)
    torch.testing.assert_close(rows, torch.ones(3, 6))


def test_the_second_attention_has_image_keys_alone():
    square = torch.rand(2, 15, 15, generator=torch.Generator().manual_seed(1)).softmax(dim=-1)
    total = torch.zeros(2, 15, 15)
    add_rows(total, slice(0, 15), square, "attn2", Grid(3, 5, 1), 0)
    assert torch.equal(total, square)
    assert part_shape("attn2", Grid(3, 5, 2), 0) == (6, 6)
    assert "attn2" in PARTS
