"""The discrete-time variational bounds against an enumerable distribution and textbook divergences."""

import math

import pytest
import torch
from oracles import FiniteSetDenoiser

from diffusion import Gaussian, LogSNRProposal, Schedule, linear_schedule, proposal_for
from information.lattice import Lattice
from information.likelihood import average, discrete_nll, error_curve, unconditional
from information.variational import discrete_bounds, fixed_variance

LATTICE = Lattice(-1.0, 0.25, 9)
SCHEDULE = linear_schedule(1e-4, 0.02, 1000)


@pytest.fixture(scope="module")
def levels():
    generator = torch.Generator().manual_seed(7)
    points = LATTICE.hard(0.5 * torch.randn(20, 2, generator=generator)).unique(dim=0)
    weights = torch.rand(len(points), generator=generator)
    oracle = FiniteSetDenoiser(points, weights / weights.sum())
    index, x = oracle.sample(3000, seed=8)
    return oracle, x, oracle.nll_nats(index)


def batches_of(x, size=1000):
    return [(torch.arange(i, min(i + size, len(x))), x[i : i + size]) for i in range(0, len(x), size)]


def bounds_of(model, x, schedule=SCHEDULE, npoints=32, size=1000):
    proposal = proposal_for(Gaussian.fit([x], LATTICE.step))
    return discrete_bounds(model, batches_of(x, size), schedule, LATTICE, proposal, npoints, seed=0)


def test_bounds_of_the_ideal_denoiser_are_just_above_the_entropy(levels):
    oracle, x, truth = levels
    bounds = bounds_of(fixed_variance(unconditional(oracle)), x)
    for nll in (bounds.ddpm_nll, bounds.vdm_nll):
        excess = average(nll - truth)
        assert excess.se < 0.05
        assert excess.mean > -3 * excess.se
    # VDM's loss in T steps tends to the integral from above.
    assert average(bounds.vdm_nll - truth).mean < 0.15


@pytest.mark.slow
def test_a_coarser_schedule_is_a_looser_bound(levels):
    oracle, x, truth = levels
    model = fixed_variance(unconditional(oracle))
    fine, coarse = (bounds_of(model, x, linear_schedule(0.1 / n, 20 / n, n)) for n in (1000, 50))
    assert average(coarse.vdm_nll - fine.vdm_nll).mean > 0.2


@pytest.mark.slow
def test_the_discrete_vdm_bound_tends_to_the_continuous_one(levels):
    oracle, x, _ = levels
    low, high = SCHEDULE.logsnr_range
    proposal = LogSNRProposal(0.0, 2.0, low, high)
    curve = error_curve({"model": unconditional(oracle)}, batches_of(x), Gaussian.fit([x], LATTICE.step), proposal, 32,
                        0, lattice=LATTICE)
    discrete = bounds_of(fixed_variance(unconditional(oracle)), x).vdm_nll
    difference = average(discrete - discrete_nll(curve, "model", left="normal"))
    assert -3 * difference.se < difference.mean < 0.1 + 3 * difference.se


@pytest.mark.slow
def test_few_steps_estimate_the_sum_over_all_of_them(levels):
    oracle, x, _ = levels
    schedule = linear_schedule(0.005, 0.5, 20)
    many, few = (bounds_of(fixed_variance(unconditional(oracle)), x, schedule, npoints) for npoints in (200, 3))
    for name in ("ddpm_nll", "vdm_nll"):
        difference = average(getattr(few, name) - getattr(many, name))
        assert abs(difference.mean) < 3.5 * difference.se


def test_the_step_is_the_divergence_of_two_normals(levels):
    """T = 2 leaves one step, whose noisy input the denoiser sees: DDPM's eqs. 6 to 8 written out."""
    _, x, _ = levels
    schedule = Schedule(torch.tensor([0.1, 0.3]))
    seen = []

    def model(x_noisy, logsnr, index):
        seen.append((x_noisy, logsnr))
        return 0.2 * x_noisy, torch.full_like(x_noisy, 0.5)

    bounds = bounds_of(model, x[:500], schedule, npoints=1)
    x_noisy, x0 = next(noisy for noisy, logsnr in seen if logsnr[0] < 1.5).double(), x[:500].double()  # step 2, not 1
    abar1, abar2 = 0.9, 0.9 * 0.7
    small = 0.3 * (1 - abar1) / (1 - abar2)
    x_hat = ((x_noisy - math.sqrt(1 - abar2) * 0.2 * x_noisy) / math.sqrt(abar2)).clamp(-1, 1)
    mean_q, mean_p = (
        (math.sqrt(abar1) * 0.3 * x0_ + math.sqrt(0.7) * (1 - abar1) * x_noisy) / (1 - abar2) for x0_ in (x0, x_hat)
    )
    sigma = math.exp(0.5 * (0.75 * math.log(0.3) + 0.25 * math.log(small)))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean_q, math.sqrt(small)), normal(mean_p, sigma)).sum(1)
    torch.testing.assert_close(bounds.ddpm, expected, rtol=1e-5, atol=1e-5)
    prior = torch.distributions.kl_divergence(normal(math.sqrt(abar2) * x0, math.sqrt(1 - abar2)), normal(0.0, 1.0))
    torch.testing.assert_close(bounds.prior, prior.sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("v", [None, -1.0, 0.3])
def test_the_decoder_is_a_distribution_over_the_lattice(v):
    values = (LATTICE.low + LATTICE.step * torch.arange(9.0))[:, None]

    always = FiniteSetDenoiser(torch.full((1, 1), 0.3))

    def model(x_noisy, logsnr, index):
        eps_hat = always(x_noisy, logsnr)
        return eps_hat, None if v is None else torch.full_like(eps_hat, v)

    bounds = bounds_of(model, values, linear_schedule(0.05, 0.5, 10), npoints=1)
    assert (-bounds.ddpm_decoder).exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_learned_variances_keep_the_bound(levels):
    oracle, x, truth = levels
    for v in (-0.9, 0.0, 1.0):
        excess = average(bounds_of(lambda s, a, i, v=v: (oracle(s, a), torch.full_like(s, v)), x).ddpm_nll - truth)
        assert excess.mean > -3 * excess.se


def test_bounds_do_not_depend_on_the_batch_size(levels):
    oracle, x, _ = levels
    one, other = (bounds_of(fixed_variance(unconditional(oracle)), x[:40], npoints=4, size=size) for size in (40, 9))
    torch.testing.assert_close(one.ddpm_nll, other.ddpm_nll, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.vdm_nll, other.vdm_nll, rtol=1e-4, atol=1e-4)
