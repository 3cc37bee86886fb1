"""Usable information of ideal denoisers, which is I(x; z), against known values."""

import math

import pytest
import torch
from oracles import PairDenoiser

from diffusion import Gaussian, proposal_for
from information.likelihood import average
from information.mutual_information import (
    both_forms,
    lost_below,
    reliance,
    scramble,
    usable_curve,
)


def batches_of(x, size=4096):
    return [(torch.arange(i, min(i + size, len(x))), x[i : i + size]) for i in range(0, len(x), size)]


def dense(n):
    return 0.5 * torch.eye(2 * n) + 0.5


def pairs(n, rho):
    """n independent pairs (x_i, z_i) of correlation rho."""
    eye = torch.eye(n)
    return torch.cat([torch.cat([eye, rho * eye], 1), torch.cat([rho * eye, eye], 1)])


def measured(oracle, count=8000, npoints=32, z_of=lambda z: z, extra=None):
    x, z = oracle.sample(count, seed=1)
    gaussian = Gaussian.fit([x], None)
    with_z = {"conditional": (oracle, z_of(z)), **(extra(z) if extra else {})}
    return usable_curve(oracle, with_z, batches_of(x), gaussian, proposal_for(gaussian), npoints, seed=0)


@pytest.mark.parametrize(
    ("covariance", "known"),
    [(pairs(1, 0.75), 0.4133), (pairs(2, 0.8), 1.0217), (dense(3), 0.4133),
     pytest.param(dense(2), 0.2939, marks=pytest.mark.slow), pytest.param(dense(5), 0.5928, marks=pytest.mark.slow),
     pytest.param(dense(25), 1.2922, marks=pytest.mark.slow),
     pytest.param(dense(50), 1.6243, marks=pytest.mark.slow)],
)
def test_ideal_denoisers_of_normal_pairs(covariance, known):
    oracle = PairDenoiser(covariance, len(covariance) // 2)
    assert oracle.exact_mi == pytest.approx(known, abs=1e-4)
    found = both_forms(measured(oracle), "conditional")
    for form in (found.difference, found.orthogonal):
        mean, se = average(form)
        assert se < 0.02
        assert abs(mean - known) < 0.03
    assert 0.5 * found.gap.nats.sum().item() == pytest.approx(average(found.difference).mean)


def test_gaussian_channel():
    # z = x + sigma n carries 1/2 sum log(1 + lambda_i / sigma^2).
    spectrum, sigma = torch.tensor([2.0, 0.5, 0.1]), 0.5
    x = torch.diag(spectrum)
    covariance = torch.cat([torch.cat([x, x], 1), torch.cat([x, x + sigma**2 * torch.eye(3)], 1)])
    known = 0.5 * torch.log1p(spectrum / sigma**2).sum().item()
    found = both_forms(measured(PairDenoiser(covariance, 3)), "conditional")
    assert average(found.difference).mean == pytest.approx(known, abs=0.03)
    assert average(found.orthogonal).mean == pytest.approx(known, abs=0.03)


def test_independent_z_carries_nothing():
    found = both_forms(measured(PairDenoiser(torch.eye(4), 2)), "conditional")
    assert found.orthogonal.abs().max() < 1e-6
    assert found.difference.abs().max() < 1e-4


def test_mismatched_z_is_told_apart_by_the_difference_alone():
    found = both_forms(measured(PairDenoiser(pairs(2, 0.8), 2), z_of=lambda z: z.roll(1, 0)), "conditional")
    assert average(found.difference).mean < -1
    assert average(found.orthogonal).mean > 0


def test_reliance_singles_out_the_entries_that_matter():
    # x_1 hangs on z_1 alone, x_2 on nothing: the loss from a wrong z_1 is E log p(x|z) - E log p(x|z'), here
    # rho^2 / (1 - rho^2) for standard normals.
    covariance = pairs(2, 0.8)
    covariance[1, 3] = covariance[3, 1] = 0.0
    oracle = PairDenoiser(covariance, 2)
    curve = measured(oracle, extra=lambda z: {"scrambled": (oracle, scramble(z))})
    first, second = reliance(curve, "conditional", "scrambled", 2)
    assert abs(first.mean - 0.64 / 0.36) < 3 * first.se
    assert first.se < 0.1
    assert abs(second.mean) < 1e-4


def test_more_noise_on_z_leaves_less_information():
    def noisy(sigma):
        eye = torch.eye(1)
        return PairDenoiser(torch.cat([torch.cat([eye, eye], 1), torch.cat([eye, (1 + sigma**2) * eye], 1)]), 1)

    taus = (0.3, 1.0)
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(2))
    gaussian = Gaussian.fit([x], None)
    with_z = {f"{tau}": (noisy(tau), x + tau * noise) for tau in taus}
    curve = usable_curve(noisy(1.0), with_z, batches_of(x), gaussian, proposal_for(gaussian), 16, seed=0)
    found = [both_forms(curve, f"{tau}") for tau in taus]
    for tau, one in zip(taus, found, strict=True):
        assert average(one.difference).mean == pytest.approx(0.5 * math.log1p(1 / tau**2), abs=0.05)


def test_what_lies_below_a_range_is_the_channel_at_its_lower_end():
    # The noisy x at log-SNR a is x + e^(-a/2) n: of a normal x, all that z = x itself could tell is the capacity.
    gaussian = Gaussian(torch.zeros(2).double(), torch.tensor([2.0, 0.5]).double(), None)
    assert lost_below(gaussian, -1.0) == pytest.approx(
        0.5 * (math.log1p(2 * math.exp(-1)) + math.log1p(0.5 * math.exp(-1))))
    assert lost_below(gaussian, -20.0) < 1e-8
