"""The curve of I(x_a; z) over log-SNR: exact where the posterior is, and bounded from below by networks."""

import math

import numpy as np
import pytest
import torch

from diffusion import Gaussian, diffuse
from information.by_logsnr import (
    Critic,
    Heads,
    Levels,
    Reader,
    exact_curve,
    exact_images,
    fit,
    joint_surprise,
    measure,
    paired,
    surprise,
)
from information.likelihood import average
from rng import Rng

POINTS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
GROUP = torch.tensor([0, 0, 1])


def sampled(count, seed=0):
    index = (Rng(seed, torch.arange(count)).uniform("point").double() * 3).long()
    return index, POINTS[index], GROUP[index]


def by_quadrature(logsnr):
    """I(x_a; group) of the three points: over a fine grid of the plane, x + e^(-a/2) n."""
    side = torch.linspace(-12, 12, 301).double()
    plane = torch.cartesian_prod(side, side)
    variance = math.exp(-logsnr)
    density = torch.stack([torch.exp(-0.5 * (plane - point).square().sum(1) / variance) / (2 * math.pi * variance)
                           for point in POINTS.double()], 1)
    joint = torch.stack([density[:, :2].sum(1) / 3, density[:, 2] / 3], 1)
    share = torch.tensor([2 / 3, 1 / 3]).double()
    logs = (joint + 1e-200).log() - ((joint.sum(1, keepdim=True) + 1e-200) * share).log()
    return ((joint * logs).sum() * (side[1] - side[0]) ** 2).item()


def test_the_exact_curve_is_that_of_the_posterior():
    logsnrs = [-2.0, 0.0, 2.0]
    index, _, z = sampled(6000)
    found = exact_curve(POINTS, GROUP, torch.eye(2).double(), index, z, logsnrs, seed=1)
    for logsnr, values in zip(logsnrs, found, strict=True):
        one = average(values)
        assert abs(one.mean - by_quadrature(logsnr)) < 3 * one.se + 1e-3
        assert one.se < 0.02
    # Through a channel with error .2 the top of the curve is the channel's I.
    mixing = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).double()
    z = torch.where(Rng(2, torch.arange(6000)).uniform("error") < 0.2, 1 - z, z)
    top = average(exact_curve(POINTS, GROUP, mixing, index, z, [9.0], seed=1)[0])
    out = np.array([2 / 3 * 0.8 + 1 / 3 * 0.2, 2 / 3 * 0.2 + 1 / 3 * 0.8])
    truth = -(out * np.log(out)).sum() + 0.8 * math.log(0.8) + 0.2 * math.log(0.2)
    assert abs(top.mean - truth) < 3 * top.se


def test_the_exact_curve_of_the_image_s_own_number_is_that_of_a_group_an_image():
    rows = sampled(50)[0]
    logsnrs = [-2.0, 1.0, 5.0]
    groups = exact_curve(POINTS, torch.arange(3), torch.eye(3).double(), rows, rows, logsnrs, seed=1)
    found = exact_images(POINTS, rows, logsnrs, seed=1)
    assert torch.allclose(found, groups, atol=1e-5)
    assert found[-1].mean().item() == pytest.approx(math.log(3), abs=1e-3)


def test_the_exact_curve_takes_a_bound_on_more_rows_for_its_control_variate():
    draws = torch.randn(300, 1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bounds = 1 + draws[..., 0]
    both = [paired(bound[:50] + 0.3 + 0.1 * other[:50], bound)
            for bound, other in zip(bounds, draws[..., 1], strict=True)]
    for found, truth in zip(zip(*both, strict=True), (1.3, 0.3), strict=True):
        means, errors = (torch.tensor([getattr(one, name) for one in found]) for name in ("mean", "se"))
        assert means.mean().item() == pytest.approx(truth, abs=0.01)
        assert errors.mean().item() == pytest.approx(means.std().item(), rel=0.15)
        assert errors.mean() < 0.04  # of 50 rows alone .14


def test_a_reader_sees_the_data_along_its_axes_at_unit_variance():
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
    gaussian = Gaussian(torch.tensor([3.0, -1.0]).double(), torch.tensor([1e-4, 4.0]).double(), turn)
    reader = Reader((2,), 3, 8, gaussian)
    seen = []
    reader.layers.register_forward_pre_hook(lambda layers, inputs: seen.append(inputs[0]))
    rng = Rng(0, torch.arange(4000))
    x = (gaussian.mean + rng.normal("x", 2).double() * gaussian.variances.sqrt() @ turn.T).float()
    for logsnr in (-2.0, 9.0):
        logsnr = torch.full((4000,), logsnr)
        reader(diffuse(x, logsnr, rng.normal("eps", 2)), logsnr)
        along = seen[-1][:, -2:]
        assert torch.allclose(along.mean(0), torch.zeros(2), atol=0.06)
        assert torch.allclose(along.std(0), torch.ones(2), atol=0.04)
    assert abs(torch.corrcoef(along.T)[0, 1]) < 0.05


def test_most_log_snrs_are_drawn_where_the_loss_is_far_from_both_ends():
    levels, unit = Levels(), (torch.arange(3200) + 0.5) / 3200
    assert torch.allclose(levels.draw(unit), unit, atol=1e-6)  # nothing seen yet
    for _ in range(20):
        at = levels.draw(unit)
        levels.see(at, 3 * torch.sigmoid(20 * (0.5 - at)))
    at = levels.draw(unit)
    assert (at.diff() > 0).all() and at[0] < 0.02 and at[-1] > 0.98
    inside = ((at > 0.375) & (at < 0.625)).float().mean().item()
    assert inside == pytest.approx(levels.density()[6:10].sum().item(), abs=0.002)
    assert inside > 0.5


@pytest.mark.slow
def test_classifier_and_critic_bound_it_from_below():
    logsnrs = [-3.0, 0.0, 3.0]
    _, x, z = sampled(2000, seed=5)

    def batch_at(index):
        _, rows, labels = sampled(512, seed=7)
        return rows[index], labels[index, None]

    network = fit(Heads((2,), (2,), hidden=32), batch_at, 512, (-4.0, 4.0), 150, seed=0)
    nats = measure(network, x, z[:, None], logsnrs, seed=3) + surprise(z[:, None])
    for logsnr, values in zip(logsnrs, nats[:, :, 0], strict=True):
        one, truth = average(values), by_quadrature(logsnr)
        assert one.mean < truth + 3 * one.se
        assert one.mean > truth - 0.08 - 3 * one.se

    def as_codes(index):
        rows, labels = batch_at(index)
        return rows, labels.float()

    critic = Critic((2,), 1, hidden=32)
    critic.batch, critic.learning_rate = 96, 5e-3
    critic = fit(critic, as_codes, 512, (-4.0, 4.0), 150, seed=0)
    nats = measure(critic, x, z[:, None].float(), logsnrs, seed=3)[:, :, 0]
    top = average(nats[2])
    assert by_quadrature(3.0) - 0.15 < top.mean < by_quadrature(3.0) + 3 * top.se
    assert average(nats[0]).mean < 0.2


def test_surprise_is_the_entropy_of_the_labels_at_hand():
    z = torch.tensor([[0, 1], [0, 1], [1, 1], [2, 0]])
    entropy = surprise(z).mean(0)
    assert entropy[0].item() == 1.5 * math.log(2)
    assert entropy[1].item() < math.log(2)
    assert joint_surprise(z).mean().item() == pytest.approx(1.5 * math.log(2))  # (0, 1) twice, (1, 1), (2, 0)
    assert joint_surprise(z[:, [1, 1]]).mean().item() == pytest.approx(entropy[1].item())


def test_chained_heads_give_the_labels_together_and_each_head_sees_only_earlier_ones():
    torch.manual_seed(0)
    network = Heads((2,), (2, 3, 2), chained=True, hidden=16)
    x, logsnr = torch.randn(1, 2).expand(12, 2), torch.zeros(12)
    every = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2))
    nats = network.nats(x, logsnr, every).detach()
    assert nats.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert nats[0, 0] == pytest.approx(nats[5, 0].item())  # both have z_1 = 0
    assert nats[0, 2] != pytest.approx(nats[2, 2].item(), abs=1e-4)  # z_3 = 0 after another z_2
    alone = Heads((2,), (2, 3, 2), hidden=16).nats(x, logsnr, every).detach()
    assert alone[0, 2] == pytest.approx(alone[2, 2].item())
