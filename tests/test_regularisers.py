"""Priors against their definitions, KL and MMD against known values."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_swiss_roll

from regularisers import PRIORS, bandwidth, kl_to_normal, mmd
from rng import Rng

N = 20_000


def draw(name, a_dim, count=N, seed=0):
    return PRIORS[name](Rng(seed, torch.arange(count)), a_dim)


def check_moments(x, mean, covariance):
    """Within five standard errors; covariances of bounded fourth moments."""
    assert (x.mean(0) - mean).abs().max() < 5 * math.sqrt(covariance.diagonal().max() / len(x))
    assert (torch.cov(x.T) - covariance).abs().max() < 5 * 2 * covariance.diagonal().max() / math.sqrt(len(x))


def test_the_regular_prior_is_standard_normal():
    check_moments(draw("regular", 5).double(), torch.zeros(5), torch.eye(5).double())


def test_the_ten_armed_mixture_has_its_moments_in_every_pair():
    x = draw("10mix", 4).double()
    # E r^2 = 1.4^2 + .5^2 + .1^2, spread evenly over both coordinates by the ten-fold symmetry
    check_moments(x, torch.zeros(4), torch.eye(4).double() * (1.4**2 + 0.5**2 + 0.1**2) / 2)
    for pair in (x[:, :2], x[:, 2:]):
        angle = torch.atan2(pair[:, 1], pair[:, 0])
        arm = (angle * 10 / (2 * math.pi)).round().long() % 10
        far = pair.norm(dim=1) > 1
        share = torch.bincount(arm[far]) / far.sum()
        assert (share - 0.1).abs().max() < 0.015
        along = torch.stack([(arm * 2 * math.pi / 10).cos(), (arm * 2 * math.pi / 10).sin()], 1)
        assert abs((pair * along).sum(1).mean().item() - 1.4) < 0.03  # few points are nearer to another arm
        # far out the arms do not touch: there the tangential spread is the mixture's own
        across = (pair - (pair * along).sum(1, keepdim=True) * along).norm(dim=1)[pair.norm(dim=1) > 1.4]
        assert abs(across.square().mean().sqrt().item() - 0.1) < 0.005
    first, second = (torch.atan2(p[:, 1], p[:, 0]) for p in (x[:, :2], x[:, 2:]))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(N)  # pairs are drawn independently


def test_the_swiss_roll_has_scikit_learns_moments():
    ours = draw("roll", 2).double()
    theirs = torch.from_numpy(make_swiss_roll(200_000, noise=0.5, random_state=0)[0][:, [0, 2]] / 5)
    check_moments(ours, theirs.mean(0), torch.cov(theirs.T))
    for power in (ours.norm(dim=1), theirs.norm(dim=1)), (ours[:, 0] ** 3, theirs[:, 0] ** 3):
        one, two = power
        assert abs(one.mean() - two.mean()) < 5 * one.std() / math.sqrt(N)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_draw_does_not_depend_on_the_batch(name):
    whole = draw(name, 2, 20)
    part = PRIORS[name](Rng(0, torch.tensor([13, 4])), 2)
    assert torch.equal(part, whole[[13, 4]])


def test_kl_is_the_closed_form_summed_over_latents():
    mean, logvar = torch.tensor([[0.0, 0.0], [1.0, -2.0]]), torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    normals = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(normals, torch.distributions.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl_to_normal(mean, logvar), expected)
    assert kl_to_normal(mean, logvar)[0] == 0


def batches_of_mmd(shift, scale, a_dim, width, batches=200, size=64):
    rng = Rng(1, torch.arange(batches * size))
    x = (shift + scale * rng.normal("x", a_dim)).split(size)
    return torch.stack([mmd(a, b, width) for a, b in zip(x, rng.normal("y", a_dim).split(size), strict=True)])


@pytest.mark.parametrize("a_dim", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (32, 256))])
def test_mmd_is_unbiased_and_separates_at_any_dimension(a_dim):
    def z_score(shift, scale):
        values = batches_of_mmd(shift, scale, a_dim, bandwidth(a_dim, "scaled"))
        return (values.mean() / (values.std() / math.sqrt(len(values)))).item()

    assert abs(z_score(0.0, 1.0)) < 3.5
    assert z_score(0.0, 1.3) > 5
    assert z_score(0.3, 1.0) > 5


def test_mmd_is_the_average_over_pairs_of_different_points():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0], [3.0]])

    def k(distance):
        return math.exp(-(distance**2) / 2.0)

    within_x, within_y = k(1), (k(2) + k(3) + k(1)) / 3
    across = (k(0) + k(2) + k(3) + k(1) + k(1) + k(2)) / 6
    assert mmd(x, y, 2.0).item() == pytest.approx(within_x + within_y - 2 * across, abs=1e-6)


def test_the_scaled_kernel_keeps_its_gradient_in_high_dimension():
    def gradient(kernel, a_dim):
        rng = Rng(0, torch.arange(64))
        x = (1.3 * rng.normal("x", a_dim)).requires_grad_()
        (g,) = torch.autograd.grad(mmd(x, rng.normal("y", a_dim), bandwidth(a_dim, kernel)), x)
        return g.norm().item()

    assert gradient("scaled", 256) > 10 * gradient("published", 256)
    assert gradient("scaled", 256) > 0.1 * gradient("scaled", 2)
