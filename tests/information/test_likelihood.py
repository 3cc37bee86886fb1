"""Likelihood bounds against closed forms: ideal denoisers, no training."""

import math

import pytest
import torch
from oracles import FiniteSetDenoiser, GaussianDenoiser, MixtureDenoiser

from diffusion import Gaussian, LogSNRProposal, proposal_for
from information.lattice import Lattice
from information.likelihood import (
    average,
    choose,
    combine,
    continuous_nll,
    dequantise,
    discrete_nll,
    error_curve,
    exact_float32,
    profile,
    unconditional,
)

IMAGE = Lattice(-1.0, 2 / 255, 256)


def batches_of(x, size=4096):
    return [(torch.arange(i, min(i + size, len(x))), x[i : i + size]) for i in range(0, len(x), size)]


def curve_of(denoiser, x, npoints=32, lattice=None, gaussian=None, size=4096, seed=0, **options):
    gaussian = gaussian or Gaussian.fit([x], lattice.step if lattice else None)
    return error_curve({"model": unconditional(denoiser)}, batches_of(x, size), gaussian, proposal_for(gaussian),
                       npoints, seed, lattice=lattice, **options)


@pytest.fixture(scope="module")
def mixture():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(12, 2, generator=generator)
    return MixtureDenoiser(torch.ones(12) / 12, means, 0.02 * torch.eye(2).expand(12, 2, 2))


@pytest.fixture(scope="module")
def mixture_curve(mixture):
    x = mixture.sample(12_000, seed=1)
    return x, curve_of(mixture, x)


def check_excess(excess, below=0.02):
    mean, se = average(excess)
    assert se < below
    assert abs(mean) < 3 * se


# ---------------------------------------------------------------------------------------------------------------------
# The continuous likelihood


def test_gaussian_nll_is_exact_with_any_reference():
    oracle = GaussianDenoiser([0.3, -0.2], [[1.0, -0.9802], [-0.9802, 1.0]])
    x = oracle.sample(12_000, seed=2)
    wrong = Gaussian(torch.tensor([0.1, 0.2]).double(), torch.tensor([0.5, 2.0]).double(), torch.eye(2).double())
    # The wrong reference's own range ends before this Gaussian's thin direction does.
    proposal = LogSNRProposal(0.0, 2.0, -10.0, 14.0)
    curve = error_curve({"model": unconditional(oracle)}, batches_of(x), wrong, proposal, 32, seed=0)
    check_excess(continuous_nll(curve, "model") - oracle.nll_nats(x))


def test_mixture_nll_is_exact(mixture, mixture_curve):
    x, curve = mixture_curve
    check_excess(continuous_nll(curve, "model") - mixture.nll_nats(x))


def test_finite_set_nll_is_its_entropy():
    # A finite set (covariances 0): 1/2 Integral mse da = -log pi; no Gaussian tail above e^-R of the distances.
    weights = torch.arange(1.0, 6.0) / 15
    oracle = FiniteSetDenoiser(torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.5], [2.0, -1.0], [-1.0, -2.0]]), weights)
    index, x = oracle.sample(12_000, seed=3)
    gaussian = Gaussian.fit([x], None)
    proposal = LogSNRProposal(0.0, 2.0, -14.0, 12.0)
    curve = error_curve({"model": unconditional(oracle)}, batches_of(x), gaussian, proposal, 32, seed=0)
    check_excess(0.5 * curve.integral(curve.errors["model"]) - oracle.nll_nats(index))


def test_a_wrong_denoiser_never_gives_a_nll_below_the_truth(mixture):
    x = mixture.sample(4000, seed=4)
    wrong = [
        lambda x_noisy, a, z=None: torch.zeros_like(x_noisy),
        lambda x_noisy, a, z=None: x_noisy,
        lambda x_noisy, a, z=None: 0.9 * mixture(x_noisy, a),
        lambda x_noisy, a, z=None: mixture(x_noisy, a + 0.5),
    ]
    for denoiser in wrong:
        excess = average(continuous_nll(curve_of(denoiser, x, npoints=16), "model") - mixture.nll_nats(x))
        assert excess.mean > -3 * excess.se
        assert excess.mean > 0.03


@pytest.mark.slow
def test_standard_error_is_the_spread_of_repetitions(mixture):
    """Fault: standard errors half of what they should be (dividing by N_x * N_a under a crossed design)."""
    runs = []
    for seed in range(40):
        x = mixture.sample(200, seed=100 + seed)
        runs.append(average(continuous_nll(curve_of(mixture, x, npoints=8, seed=seed), "model") - mixture.nll_nats(x)))
    claimed = math.sqrt(sum(run.se**2 for run in runs) / len(runs))
    observed = torch.tensor([run.mean for run in runs]).std().item()
    assert 0.7 < claimed / observed < 1.4


def test_control_variate_and_strata_keep_the_variance_low(mixture, mixture_curve):
    x, curve = mixture_curve
    spread = (continuous_nll(curve, "model") - mixture.nll_nats(x)).std().item()
    assert spread < 2.1  # 4.09 for independent log-SNRs without the reference, 1.98 with both


def test_results_do_not_depend_on_the_batch_size(mixture):
    x = mixture.sample(50, seed=5)
    gaussian = Gaussian.fit([x], None)
    one, other = (curve_of(mixture, x, npoints=5, gaussian=gaussian, size=size) for size in (50, 7))
    torch.testing.assert_close(one.logsnr, other.logsnr, rtol=0, atol=0)
    torch.testing.assert_close(continuous_nll(one, "model"), continuous_nll(other, "model"), rtol=1e-4, atol=1e-4)


def test_profile_is_the_error_curve_and_sums_to_the_integral():
    oracle = GaussianDenoiser([0.0, 0.0], [[2.0, 0.0], [0.0, 0.1]])
    x = oracle.sample(4000, seed=6)
    curve = curve_of(oracle, x)
    found = profile(curve, curve.errors["model"], bins=30)
    expected = torch.sigmoid(found.logsnr[:, None] + torch.tensor([2.0, 0.1]).log()).sum(1)
    assert ((found.mean - expected).abs() < 4 * found.se + 0.005).all()
    assert found.nats.sum().item() == pytest.approx(curve.integral(curve.errors["model"]).mean().item())


def test_exact_float32_restores_what_it_found():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    with exact_float32("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before[0])
    assert torch.backends.cudnn.allow_tf32 == before[1]


# ---------------------------------------------------------------------------------------------------------------------
# Discrete data


@pytest.fixture(scope="module")
def levels():
    """A distribution over pairs of values of a small lattice: (lattice, oracle)."""
    lattice = Lattice(-1.0, 0.25, 9)
    generator = torch.Generator().manual_seed(7)
    points = lattice.hard(0.5 * torch.randn(20, 2, generator=generator)).unique(dim=0)
    weights = torch.rand(len(points), generator=generator)
    return lattice, FiniteSetDenoiser(points, weights / weights.sum())


@pytest.fixture(scope="module")
def levels_curve(levels):
    lattice, oracle = levels
    index, x = oracle.sample(8000, seed=8)
    return oracle.nll_nats(index), x, curve_of(oracle, x, lattice=lattice, soft=True)


@pytest.mark.parametrize("right", ["softmax", "rounding"])
@pytest.mark.parametrize("left", ["gaussian", "normal"])
def test_discrete_bound_of_the_ideal_denoiser_is_the_entropy(levels_curve, left, right):
    truth, _, curve = levels_curve
    check_excess(discrete_nll(curve, "model", left, right) - truth, below=0.05)


@pytest.mark.parametrize("high", [-2.0, 1.0, 3.0])
@pytest.mark.parametrize("right", ["softmax", "rounding"])
def test_tails_keep_a_bound_over_a_short_range(levels, high, right):
    """Fault: the tail term lacks a factor and is not a bound."""
    lattice, oracle = levels
    index, x = oracle.sample(4000, seed=9)
    gaussian = Gaussian.fit([x], lattice.step)
    proposal = LogSNRProposal(0.0, 2.0, -1.0 if high > 0 else -5.0, high)
    curve = error_curve({"model": unconditional(oracle)}, batches_of(x), gaussian, proposal, 16, 0, lattice=lattice)
    excess = average(discrete_nll(curve, "model", right=right) - oracle.nll_nats(index))
    assert excess.mean > -3 * excess.se
    assert excess.mean > (0.1 if high < 2 else 0)


def test_discrete_bounds_of_wrong_denoisers_stay_above_the_entropy(levels):
    lattice, oracle = levels
    index, x = oracle.sample(4000, seed=10)
    gaussian = Gaussian.fit([x], lattice.step)
    for denoiser in (gaussian.denoise, lambda x_noisy, a, z=None: 0.8 * oracle(x_noisy, a)):
        curve = curve_of(denoiser, x, npoints=16, lattice=lattice, gaussian=gaussian, soft=True)
        for name in ("model", "model hard", "model soft"):
            for right in ("softmax", "rounding"):
                excess = average(discrete_nll(curve, name, right=right) - oracle.nll_nats(index))
                assert excess.mean > -3 * excess.se


def test_rounding_tail_is_the_error_of_rounding():
    # Simulated: 1/2 Integral_R^inf e^a E|x - round(x + e^(-a/2) eps)|^2 da of one far-from-the-edge dimension.
    lattice, low = Lattice(-100.0, 0.25, 801), 1.0
    eps = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double()
    grid = torch.linspace(low, low + 12, 300, dtype=torch.float64)
    error = torch.stack([(lattice.hard((-a / 2).exp() * eps) ** 2).mean() * a.exp() for a in grid])
    assert lattice.rounding_tail(low) == pytest.approx(0.5 * torch.trapezoid(error, grid).item(), rel=0.01)


def test_softmax_decoder_is_a_distribution_over_the_lattice():
    lattice = Lattice(-1.0, 0.25, 9)
    values = (lattice.low + lattice.step * torch.arange(9.0))[:, None]
    for a in (-3.0, 2.0, 6.0):
        # One noisy input, explained by each value in turn: eps = (x_noisy / sqrt(s) - b) e^(a/2).
        eps = (0.07 - values) * math.exp(a / 2)
        nll = lattice.softmax_nll(values, torch.full((9,), a), eps)
        assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_soft_rounding_is_the_softmax_mean():
    x_hat = torch.linspace(-1.3, 1.3, 50)[:, None]
    values = -1 + torch.arange(256) * (2 / 255)
    for a in (-4.0, 3.0, 9.0, 13.0):
        logits = -0.5 * (x_hat.double() - values.double()) ** 2 * (1 + math.exp(a))
        expected = (torch.softmax(logits, dim=1) * values.double()).sum(1, keepdim=True)
        found = IMAGE.soft(x_hat, torch.full((50,), a))
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_dequantised_and_lattice_values(levels):
    """The dequantised value bounds -log P; the density of points of a lattice, taken for a bound, falls below it."""
    lattice, oracle = levels
    index, x = oracle.sample(6000, seed=11)
    truth = oracle.nll_nats(index)
    cells = 2 * math.log(lattice.step)
    gaussian = Gaussian.fit([x], lattice.step)
    spread = lattice.step**2 / 12 * torch.eye(2).expand(len(oracle.points), 2, 2)
    squares = MixtureDenoiser(oracle.weights, oracle.points, spread)
    curve = error_curve({"model": unconditional(squares)}, dequantise(batches_of(x), lattice, 0), gaussian,
                        LogSNRProposal(2.0, 2.0, -10.0, 16.0), 32, seed=0)
    excess = average(continuous_nll(curve, "model") - cells - truth)
    # Cells modelled as Gaussians of their variance: at most the divergence from them, .1765 a dimension.
    assert -3 * excess.se < excess.mean < 2 * 0.1765 + 3 * excess.se
    on_points = curve_of(oracle, x, lattice=lattice, gaussian=gaussian)
    lattice_value = average(continuous_nll(on_points, "model") - cells - truth)
    assert lattice_value.mean < -10 * lattice_value.se


@pytest.mark.slow
def test_the_choice_is_made_on_other_data_and_no_worse_there(levels_curve, levels):
    """Fault: curves are clamped and selected on the data that they are reported on."""
    lattice, oracle = levels
    truth, x, _ = levels_curve
    gaussian = Gaussian.fit([x], lattice.step)
    names = ["model", "model hard", "model soft"]
    val = curve_of(gaussian.denoise, oracle.sample(2000, seed=12)[1], lattice=lattice, gaussian=gaussian, soft=True)
    test = curve_of(gaussian.denoise, x, lattice=lattice, gaussian=gaussian, soft=True)
    best = average(discrete_nll(combine(test, "best", choose(val, names)), "best") - truth)
    assert best.mean > -3 * best.se
    for name in names:
        assert best.mean < average(discrete_nll(test, name) - truth).mean + 0.01
