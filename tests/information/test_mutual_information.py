"""Mutual information of ideal denoisers against known values, and of encoders against closed forms."""

import math

import pytest
import torch
from oracles import PairDenoiser

from diffusion import Gaussian, proposal_for
from information.likelihood import Mean, Profile, average
from information.mutual_information import (
    check_against_encoder,
    check_encoder,
    check_gap,
    check_tau,
    encoder_information,
    information,
    information_curve,
    reliance,
    scramble,
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
    return information_curve(oracle, with_z, batches_of(x), gaussian, proposal_for(gaussian), npoints, seed=0)


@pytest.mark.parametrize(
    ("covariance", "known"),
    [(pairs(1, 0.75), 0.4133), (pairs(2, 0.8), 1.0217), (dense(2), 0.2939), (dense(3), 0.4133), (dense(5), 0.5928),
     pytest.param(dense(25), 1.2922, marks=pytest.mark.slow),
     pytest.param(dense(50), 1.6243, marks=pytest.mark.slow)],
)
def test_ideal_denoisers_of_normal_pairs(covariance, known):
    oracle = PairDenoiser(covariance, len(covariance) // 2)
    assert oracle.exact_mi == pytest.approx(known, abs=1e-4)
    found = information(measured(oracle), "conditional")
    for form in (found.difference, found.orthogonal):
        mean, se = average(form)
        assert se < 0.02
        assert abs(mean - known) < 0.03
    assert check_gap("", found.gap).passed
    assert 0.5 * found.gap.nats.sum().item() == pytest.approx(average(found.difference).mean)


def test_gaussian_channel():
    # z = x + sigma n carries 1/2 sum log(1 + lambda_i / sigma^2).
    spectrum, sigma = torch.tensor([2.0, 0.5, 0.1]), 0.5
    x = torch.diag(spectrum)
    covariance = torch.cat([torch.cat([x, x], 1), torch.cat([x, x + sigma**2 * torch.eye(3)], 1)])
    known = 0.5 * torch.log1p(spectrum / sigma**2).sum().item()
    found = information(measured(PairDenoiser(covariance, 3)), "conditional")
    assert average(found.difference).mean == pytest.approx(known, abs=0.03)
    assert average(found.orthogonal).mean == pytest.approx(known, abs=0.03)


def test_independent_z_carries_nothing():
    found = information(measured(PairDenoiser(torch.eye(4), 2)), "conditional")
    assert found.orthogonal.abs().max() < 1e-6
    assert found.difference.abs().max() < 1e-4


def test_mismatched_z_is_told_apart_by_the_difference_alone():
    found = information(measured(PairDenoiser(pairs(2, 0.8), 2), z_of=lambda z: z.roll(1, 0)), "conditional")
    assert average(found.difference).mean < -1
    assert not check_gap("", found.gap).passed


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


@pytest.mark.parametrize("count", [300, 2000])
def test_encoder_information_brackets_the_truth(count):
    # mean ~ N(0, s^2), z = mean + N(0, 1): I = 1/2 log(1 + s^2) an entry.
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.3])
    mean = torch.randn(count, 2, generator=generator) * spread
    z = mean + torch.randn(count, 2, generator=generator)
    found = encoder_information(mean, torch.zeros_like(mean), z)
    known = 0.5 * torch.log1p(spread**2)
    low, high = average(found.included), average(found.left_out)
    assert low.mean < high.mean
    assert abs(low.mean - known.sum().item()) < 3 * low.se + 0.02
    assert abs(high.mean - known.sum().item()) < 3 * high.se + 0.02
    for entry, truth in zip(found.per_dimension.T, known, strict=True):
        mean_, se = average(entry)
        assert abs(mean_ - truth.item()) < 3 * se + 0.02


def test_encoder_information_saturates_at_log_n():
    mean = torch.arange(50.0)[:, None] * 100
    found = encoder_information(mean, torch.full_like(mean, -4.0), mean, chunk=7)
    torch.testing.assert_close(found.included, torch.full((50,), math.log(50), dtype=torch.float64))
    assert found.left_out.min() > 1000
    iq = average(found.included)
    assert check_against_encoder("I", Mean(9.0, 0.1), iq, 50) is None
    assert check_encoder(iq, None, 50).passed


def test_checks_tell_the_violated_from_the_held():
    iq = Mean(1.0, 0.01)
    assert check_against_encoder("I", Mean(1.01, 0.01), iq, 10_000).passed
    assert not check_against_encoder("I", Mean(1.2, 0.01), iq, 10_000).passed
    assert check_encoder(iq, Mean(1.5, 0.01), 10_000).passed
    assert not check_encoder(iq, Mean(0.5, 0.01), 10_000).passed
    level, ones = torch.linspace(-5, 5, 10), torch.ones(10)
    assert check_gap("", Profile(level, -1.5 * ones, ones, ones)).passed
    assert not check_gap("", Profile(level, torch.cat([ones[1:], torch.tensor([-4.0])]), ones, ones)).passed


def test_more_noise_on_z_leaves_less_information():
    def noisy(sigma):
        eye = torch.eye(1)
        return PairDenoiser(torch.cat([torch.cat([eye, eye], 1), torch.cat([eye, (1 + sigma**2) * eye], 1)]), 1)

    taus = (0.3, 1.0)
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(2))
    gaussian = Gaussian.fit([x], None)
    with_z = {f"{tau}": (noisy(tau), x + tau * noise) for tau in taus}
    curve = information_curve(noisy(1.0), with_z, batches_of(x), gaussian, proposal_for(gaussian), 16, seed=0)
    found = [information(curve, f"{tau}") for tau in taus]
    for tau, one in zip(taus, found, strict=True):
        assert average(one.difference).mean == pytest.approx(0.5 * math.log1p(1 / tau**2), abs=0.05)
    assert check_tau(taus, found).passed
    assert not check_tau(taus, found[::-1]).passed
