"""Eigenvalues of an Euler step are those that the argument for tailed tables says."""

import pytest
import torch

from flow import FlowError, sigmas, step_eigenvalues


def denoiser(across: float):
    """Data on a plane in 24 dimensions: denoising keeps what lies in it and leaves `across` of the rest."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64))[0]
    kept = torch.cat([torch.ones(2), torch.full((22,), across)]).double()
    matrix = basis @ kept.diag() @ basis.T

    def velocity(x, sigma):
        return (x - (x.double() @ matrix).to(x)) / sigma[:, None].to(x)

    return velocity


@pytest.mark.parametrize("preset", ["reference", "tailed"])
@pytest.mark.parametrize("across", [0.0, -0.2])
def test_a_step_keeps_the_data_and_shrinks_the_rest(preset, across):
    x = torch.randn(1, 24, generator=torch.Generator().manual_seed(1))
    table = sigmas(28, preset=preset)
    for number in (3, 26):
        ratio = float(table[number + 1] / table[number])
        found = step_eigenvalues(
            denoiser(across), x, table[number : number + 2], generator=torch.Generator().manual_seed(2)
        )
        assert found[-1].real == pytest.approx(1, abs=1e-4)
        assert found[0].real == pytest.approx(ratio + (1 - ratio) * across, abs=1e-3)


def test_the_reference_table_folds_under_an_error_that_a_tailed_one_bears():
    x = torch.randn(1, 24, generator=torch.Generator().manual_seed(1))
    least = {
        preset: float(
            step_eigenvalues(
                denoiser(-0.2),
                x,
                sigmas(28, preset=preset)[26:28],
                generator=torch.Generator().manual_seed(2),
            )[0].real
        )
        for preset in ("reference", "tailed")
    }
    assert least["reference"] < 0 < least["tailed"]


def test_a_rotation_has_complex_eigenvalues():
    def velocity(x, sigma):
        return torch.stack([-x[:, 1], x[:, 0]], 1)

    found = step_eigenvalues(
        velocity, torch.ones(1, 2), torch.tensor([1.0, 0.5]), generator=torch.Generator()
    )
    assert found.abs().tolist() == pytest.approx([1.25**0.5] * 2, rel=1e-4)
    assert found.imag.abs().tolist() == pytest.approx([0.5] * 2, rel=1e-4)


def test_one_sample_and_one_step():
    for x, table in ((torch.ones(2, 3), sigmas(1)), (torch.ones(1, 3), sigmas(2))):
        with pytest.raises(FlowError, match="one sample and one step"):
            step_eigenvalues(lambda x, sigma: x, x, table, generator=torch.Generator())
