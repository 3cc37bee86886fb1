"""Schedules, the channel, the Gaussian reference and the objectives against closed forms."""

import math

import pytest
import torch
from oracles import GaussianDenoiser, MixtureDenoiser

from diffusion import (
    Gaussian,
    ITDObjective,
    LogSNRProposal,
    SimpleObjective,
    cosine_schedule,
    diffuse,
    linear_schedule,
    predict_x,
    proposal_for,
)
from rng import Rng
from utils import CommandError

SCHEDULES = {"linear": linear_schedule(1e-5, 1e-2, 1000), "cosine": cosine_schedule(1000)}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# Schedules


def test_linear_betas_have_their_known_products():
    abar = torch.sigmoid(linear_schedule(0.1, 0.3, 3).logsnr_table)
    assert torch.allclose(abar, torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]).double())
    low, high = SCHEDULES["linear"].logsnr_range
    assert (low, high) == pytest.approx((-5.0, 11.5), abs=0.05)  # the published 1e-5 .. 1e-2


def test_the_cosine_schedule_follows_its_cosine_and_is_cut_at_the_end():
    schedule = cosine_schedule(1000)
    f = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.sigmoid(schedule.logsnr_table[499]).item() == pytest.approx(f, rel=1e-9)
    assert schedule.betas.max().item() == 0.999


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_steps_and_log_snrs_are_inverse_to_each_other(schedule):
    steps = torch.arange(1, 1001)
    assert torch.equal(schedule.logsnr(steps), schedule.logsnr_table)
    assert torch.allclose(schedule.step_of(schedule.logsnr_table), steps.double(), atol=1e-9)
    between = torch.tensor([-3.0, 1.0, 1.5, 37.25, 999.9, 1000.0, 1040.0]).double()
    assert torch.allclose(schedule.step_of(schedule.logsnr(between)), between, atol=1e-6)


def test_every_sample_has_its_own_step_and_none_saturates():
    schedule = SCHEDULES["linear"]
    logsnr = torch.tensor([30.0, 12.0, 11.6, 0.0, -5.5, -9.0])  # past both ends of the table
    steps = schedule.step_of(logsnr)
    assert (steps.diff() > 0).all()
    alone = torch.cat([schedule.step_of(a[None]) for a in logsnr])
    assert torch.equal(steps, alone)


def test_a_grid_walks_from_noise_to_clean_data():
    schedule = linear_schedule(1e-4, 0.02, 50)
    full = schedule.grid(50)
    assert torch.equal(full[:-1], schedule.logsnr_table.flip(0)) and full[-1] == math.inf
    for spacing in ("time", "logsnr"):
        grid = schedule.grid(7, spacing)
        assert len(grid) == 8 and (grid.diff() > 0).all()
        assert (grid[0].item(), grid[-2].item()) == pytest.approx(schedule.logsnr_range)
    gaps = schedule.grid(7, "logsnr")[:-1].diff()
    assert torch.allclose(gaps, gaps[0])


# ---------------------------------------------------------------------------------------------------------------------
# The channel


def test_the_channel_keeps_the_variance_and_has_its_log_snr():
    x, eps, a = normal(4, 3, 2), normal(4, 3, 2, seed=1), torch.tensor([-6.0, -1.0, 2.0, 8.0])
    zeros = torch.zeros_like(x)
    signal = (diffuse(x, a, zeros) / x).flatten(1)[:, 0].double()
    rng = (diffuse(zeros, a, eps) / eps).flatten(1)[:, 0].double()
    assert torch.allclose(signal**2 + rng**2, torch.ones(4).double(), atol=1e-6)
    assert torch.allclose(2 * (signal.log() - rng.log()), a.double(), atol=1e-5)


def test_the_clean_image_undoes_the_channel():
    x, eps, a = normal(4, 3, 2), normal(4, 3, 2, seed=1), torch.tensor([-4.0, -1.0, 2.0, 5.0])
    noisy = diffuse(x, a, eps)
    assert torch.allclose(predict_x(noisy, a, eps), x, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# The Gaussian reference


@pytest.fixture(scope="module")
def correlated():
    root = normal(6, 6, seed=2).double()
    return GaussianDenoiser(normal(6, seed=3), 0.3 * root @ root.T / 6 + 0.1 * torch.eye(6))


def test_moments_do_not_depend_on_the_batches(correlated):
    x = correlated.sample(1001, seed=0)
    whole, parts = Gaussian.fit([x], None), Gaussian.fit(x.split(100), None)
    assert torch.allclose(whole.variances, parts.variances) and torch.allclose(whole.mean, parts.mean)
    assert torch.allclose(whole.mean, x.double().mean(0))
    assert torch.allclose(whole.variances, torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)))
    diagonal = Gaussian.fit([x], None, full_up_to=5)
    assert diagonal.basis is None and torch.allclose(diagonal.variances, x.double().var(0, unbiased=False))


def smooth(d, correlation=0.97):
    """A Gaussian whose neighbouring coordinates go together, as pixels do."""
    place = torch.arange(d)
    values, basis = torch.linalg.eigh(correlation ** (place[:, None] - place).abs().double())
    return Gaussian(torch.zeros(d).double(), values, basis)


def drawn(gaussian, rows, seed):
    return gaussian.rotate_back(normal(rows, len(gaussian.mean), seed=seed).double() * gaussian.variances.sqrt())


@pytest.mark.parametrize("rows, excess", [(12, 0.9), (40, 0.35), (100, 0.2), (200, 0.15)])
def test_few_rows_give_a_reference_that_new_rows_bear_out(rows, excess):
    """The sample's own covariance of 40 rows in 80 dimensions takes half of all directions for constant."""
    d, truth = 80, smooth(80)
    x, new = drawn(truth, rows, seed=1), drawn(truth, 1000, seed=2)
    fitted = Gaussian.fit([x], 1e-3)
    assert fitted.is_weak and fitted.rows == rows and 0 < fitted.shrinkage < 1
    found, ideal = fitted.nll_nats(new).mean().item() / d, truth.nll_nats(new).mean().item() / d
    assert ideal < found < ideal + excess
    assert found < Gaussian.fit([x], 1e-3, full_up_to=1).nll_nats(new).mean().item() / d - 0.3
    low, high = truth.logsnr_range
    assert fitted.logsnr_range == pytest.approx((low, high), abs=2)
    parts = Gaussian.fit(x.split(7), 1e-3)
    assert parts.shrinkage == fitted.shrinkage
    assert torch.allclose(parts.nll_nats(new), fitted.nll_nats(new), rtol=1e-8)


def test_plentiful_rows_are_not_shrunk():
    x = drawn(smooth(20), 100, seed=3)  # 5 rows a dimension
    fitted = Gaussian.fit([x], None)
    assert not fitted.is_weak and fitted.shrinkage == 0
    assert torch.allclose(fitted.variances, torch.linalg.eigvalsh(torch.cov(x.T, correction=0)), rtol=1e-9)
    assert Gaussian.fit([x[:99]], None).is_weak


def test_independent_coordinates_are_shrunk_to_a_diagonal():
    fitted = Gaussian.fit([normal(40, 50)], None)
    assert fitted.shrinkage > 0.9
    for rows in range(1, 7):
        few = Gaussian.fit([normal(rows, 4)], 2 / 255)
        assert few.nll_nats(normal(9, 4, seed=5)).isfinite().all() and all(map(math.isfinite, few.logsnr_range))


def test_a_checkpoint_keeps_how_the_reference_was_estimated():
    fitted = Gaussian.fit([drawn(smooth(20), 30, seed=3)], None)
    again = Gaussian.from_state(fitted.state())
    assert (again.rows, again.shrinkage) == (30, fitted.shrinkage) and again.is_weak
    before = {name: fitted.state()[name] for name in ("mean", "variances", "basis")}
    assert not Gaussian.from_state(before).is_weak
    assert Gaussian.from_state({"rows": 30, **before}).is_weak


def test_constant_pixels_do_not_give_log_zero():
    x = normal(500, 4)
    x[:, 1] = 0.25
    lattice = Gaussian.fit([x], lattice_step=2 / 255)
    assert lattice.variances.min().item() == pytest.approx((2 / 255) ** 2 / 12)
    free = Gaussian.fit([x], None)
    assert free.variances.min().item() == pytest.approx(1e-6 * free.variances.max().item())
    for gaussian in (lattice, free):
        assert math.isfinite(gaussian.loc) and all(map(math.isfinite, gaussian.logsnr_range))
        assert gaussian.logsnr_range[1] <= 25
        assert gaussian.nll_nats(x).isfinite().all()


def test_the_reference_denoises_like_the_ideal_denoiser(correlated):
    gaussian = Gaussian(correlated.means[0], correlated.variances[0], correlated.basis[0])
    x, a = normal(32, 6), torch.linspace(-8, 8, 32)
    assert torch.allclose(gaussian.denoise(x, a), correlated(x, a), atol=1e-5)
    assert torch.allclose(gaussian.nll_nats(x), correlated.nll_nats(x))
    again = Gaussian.from_state(gaussian.state())
    assert torch.allclose(again.denoise(x, a), correlated(x, a), atol=1e-5)


def test_the_references_error_is_its_mmse(correlated):
    gaussian = Gaussian(correlated.means[0], correlated.variances[0], correlated.basis[0])
    x, a = correlated.sample(20_000, seed=4), 1.5
    rng = Rng(0, torch.arange(len(x)))
    eps, level = rng.normal("eps", 6), torch.full((len(x),), a)
    error = (eps - gaussian.denoise(diffuse(x, level, eps), level)).square().sum(1)
    expected = torch.sigmoid(a + gaussian.variances.log()).sum().item()
    assert abs(error.mean().item() - expected) < 4 * error.std().item() / math.sqrt(len(x))


def test_the_spectrum_sets_centre_and_scale_of_the_log_snr():
    gaussian = Gaussian(torch.zeros(2), torch.tensor([math.e**-2, math.e**4]).double(), None)
    assert gaussian.loc == pytest.approx(-1)
    assert gaussian.scale == pytest.approx(math.sqrt(1 + 3 / math.pi**2 * 9))
    assert gaussian.logsnr_range == pytest.approx((-12, 10))


# ---------------------------------------------------------------------------------------------------------------------
# The proposal


@pytest.mark.parametrize("proposal", [
    LogSNRProposal(0.0, 1.0, -8.0, 8.0), LogSNRProposal(6.0, 3.0, -9.0, 25.0), LogSNRProposal(2.0, 0.01, -8.0, 12.0),
    LogSNRProposal(1.0, 2.0, -5.0, 11.0, uniform=0.3),
])
def test_proposal_weights_integrate_known_functions(proposal):
    """Midpoints of equal strata make the average an integral over the unit interval."""
    a, weight = proposal.draw((torch.arange(200_000).double() + 0.5) / 200_000)
    assert proposal.low <= a.min() and a.max() <= proposal.high
    assert weight.mean().item() == pytest.approx(proposal.high - proposal.low, rel=2e-3)
    exact = 2 * (math.atan(math.exp(proposal.high / 2)) - math.atan(math.exp(proposal.low / 2)))
    assert (weight * (torch.sigmoid(a) * torch.sigmoid(-a)).sqrt()).mean().item() == pytest.approx(exact, rel=2e-3)
    assert weight.max() <= (proposal.high - proposal.low) / proposal.uniform * (1 + 1e-9)


def test_values_given_by_hand_replace_the_datas():
    gaussian = Gaussian(torch.zeros(2), torch.ones(2).double(), None)
    assert proposal_for(gaussian) == LogSNRProposal(0.0, 1.0, -8.0, 8.0)
    assert proposal_for(gaussian, 3.0, 2.0) == LogSNRProposal(3.0, 2.0, -8.0, 8.0)
    assert proposal_for(gaussian, 6.0, 3.0, 4.0) == LogSNRProposal(6.0, 3.0, -6.0, 18.0)
    assert proposal_for(gaussian, 6.0, 3.0, 60.0).high == 25.0  # float32 has lost the noise there


def test_a_centre_outside_the_range_is_refused():
    gaussian = Gaussian(torch.zeros(2), torch.ones(2).double(), None)
    with pytest.raises(CommandError, match="logsnr_loc 40"):
        proposal_for(gaussian, 40.0)


# ---------------------------------------------------------------------------------------------------------------------
# Objectives


def losses(objective, denoiser, x, seed=0):
    """One (log-SNR, eps) a sample, as in training. [B]"""
    rng = Rng(seed, torch.arange(len(x)))
    logsnr, eps = objective.draw(rng.spread("logsnr")), rng.normal("eps", *x.shape[1:])
    noisy = diffuse(x, logsnr, eps)
    return objective.loss(x, noisy, logsnr, eps, denoiser(noisy, logsnr))


@pytest.mark.parametrize("loc", [None, 3.0])
def test_the_itd_loss_is_an_unbiased_likelihood_of_the_ideal_denoiser(loc):
    mixture = MixtureDenoiser([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], 0.1 * torch.eye(2).expand(2, 2, 2))
    x = mixture.sample(50_000, seed=1)
    gaussian = Gaussian.fit([x], None)
    values = losses(ITDObjective(proposal_for(gaussian, loc), gaussian), mixture, x).double()
    excess = values - mixture.nll_nats(x)
    assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(len(x))


def test_the_itd_loss_of_a_gaussian_is_its_entropy(correlated):
    x = correlated.sample(20_000, seed=2)
    gaussian = Gaussian(correlated.means[0], correlated.variances[0], correlated.basis[0])
    values = losses(ITDObjective(proposal_for(gaussian), gaussian), correlated, x).double()
    entropy = 0.5 * (correlated.variances.log().sum() + 6 * math.log(2 * math.pi * math.e)).item()
    assert abs(values.mean().item() - entropy) < 4 * values.std().item() / math.sqrt(len(x))
    # The reference is the data's own law: nothing of the noise is left in the loss of any one sample
    assert torch.allclose(values, correlated.nll_nats(x), atol=0.05)


def test_a_wrong_denoiser_never_beats_the_truth(correlated):
    x = correlated.sample(20_000, seed=3)
    gaussian = Gaussian.fit([x], None)
    values = losses(ITDObjective(proposal_for(gaussian), gaussian), lambda x, a: 0.8 * correlated(x, a), x).double()
    excess = values - correlated.nll_nats(x)
    assert excess.mean() > 3 * excess.std() / math.sqrt(len(x))


def test_the_simple_loss_is_a_mean_over_dimensions_and_one_log_snr_a_sample():
    objective = SimpleObjective(linear_schedule(1e-4, 0.02, 20))
    eps = normal(5, 3, 4, 4)
    loss = objective.loss(eps, eps, torch.zeros(5), eps, eps + torch.arange(5.0).reshape(-1, 1, 1, 1))
    assert torch.allclose(loss, torch.arange(5.0) ** 2, atol=1e-5)
    drawn = objective.draw((torch.arange(400) + 0.5) / 400)
    table, counts = drawn.unique(return_counts=True)
    assert torch.allclose(table.double(), objective.schedule.logsnr_table.flip(0), atol=1e-5)
    assert (counts == 20).all()  # every discrete step equally often
