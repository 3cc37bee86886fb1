"""The interval of I(x; z) against closed forms, and against finite populations where I is known exactly."""

import math

import numpy as np
import pytest
import torch

from experiment.intervals import Latent
from information.entries import of_entries, with_labels
from information.interval import (
    FEW,
    FEWEST,
    Bracket,
    Normals,
    Symbols,
    bracket,
    check_order,
    check_taus,
    check_usable,
    controlled,
    exact,
)
from information.likelihood import Mean
from utils import CommandError


def normal_codes(count, spread, seed=0, logvar=0.0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, len(spread), generator=generator).double() * torch.tensor(spread).double()
    return Normals.draw(mean, torch.tensor(logvar), seed)


def three(make):
    return [make(count, seed) for count, seed in ((800, 0), (1600, 1), (400, 2))]


def holds(found, truth, width):
    """At three standard errors, so that no test is one of chance."""
    assert found.lower.mean - 3 * found.lower.se - 1e-9 <= truth <= found.upper.mean + 3 * found.upper.se + 1e-9
    low, high = found.ends
    assert high - low < width


@pytest.mark.parametrize("spread", [(1.0, 0.3), (0.0, 0.0), (3.0, 2.0, 1.0)])
def test_a_gaussian_channel(spread):
    # mean ~ N(0, s^2), z = mean + N(0, 1): I = 1/2 log(1 + s^2) an entry.
    truth = 0.5 * sum(math.log1p(s * s) for s in spread)
    found = bracket(*three(lambda count, seed: normal_codes(count, spread, seed)))
    holds(found, truth, 0.4)
    assert not found.saturated
    for entry, s in zip(of_entries(*three(lambda count, seed: normal_codes(count, spread, seed))[:2]), spread,
                        strict=True):
        holds(entry, 0.5 * math.log1p(s * s), 0.25)


def test_clusters_need_a_mixture():
    # Codes at four corners, far apart: I = log 4, where the capacity of one Gaussian says much more.
    def make(count, seed):
        corner = torch.from_numpy(np.random.default_rng(seed).choice([-5.0, 5.0], size=(count, 2)))
        return Normals.draw(corner, torch.zeros(2), seed)

    found = bracket(*three(make))
    holds(found, math.log(4), 0.2)
    assert found.bounds["mixture"].mean == pytest.approx(math.log(4), abs=0.1)
    assert found.components in (4, 8)
    assert found.bounds["capacity"].mean > 3


def test_a_code_without_noise_to_speak_of_saturates():
    mean = torch.arange(50.0)[:, None] * 100
    found = bracket(Normals.draw(mean, torch.tensor(-4.0), 0))
    assert found.lower.mean == pytest.approx(math.log(50))
    assert found.saturated
    assert found.upper.mean > 1000
    assert found.upper_by == "left-out"


def test_the_rate_may_be_the_least_bound():
    rows = normal_codes(500, (1.0,))
    found = bracket(rows, rate=torch.full((500,), 0.4).double())
    assert (found.upper_by, found.upper.mean) == ("rate", pytest.approx(0.4))


def test_the_control_variate_changes_the_error_and_not_the_mean():
    rows = normal_codes(3000, (0.2,) * 20)
    values = rows.log_conditional()
    noise = values + rows.entropy()
    assert controlled(values, noise).se < 1e-9
    assert controlled(values, noise).mean == pytest.approx(-rows.entropy()[0].item())


@pytest.mark.parametrize(("error", "independent"), [(0.0, False), (0.2, False), (0.0, True)])
def test_symmetric_channels(error, independent):
    sizes = (10, 4)

    def make(count, seed):
        sent = np.random.default_rng(seed).integers(sizes, size=(count, len(sizes)))
        return Symbols.draw(torch.from_numpy(sent), sizes, error, independent, seed)

    truth = 0.0 if independent else sum(
        math.log(m) + sum(p * math.log(p) for p in (1 - error, error) if p) - error * math.log(m - 1) for m in sizes)
    measured, fit, _ = three(make)
    assert (measured.z != measured.sent).double().mean().item() == pytest.approx(
        0.825 if independent else error, abs=0.03)
    found = bracket(measured, fit)
    holds(found, truth, 0.15)
    assert measured.capacity == pytest.approx(truth)


def test_against_a_whole_population_it_is_exact():
    # 64 codes on a line with unit noise: I by quadrature.
    codes = torch.linspace(-6, 6, 64).double()[:, None]
    population = Normals.draw(codes, torch.zeros(1), 0)
    rows = Normals.draw(codes.repeat(60, 1), torch.zeros(1), 1)
    x = torch.linspace(-14, 14, 20001).double()
    density = torch.exp(-0.5 * (x[:, None] - codes[:, 0]) ** 2).mean(1) / math.sqrt(2 * math.pi)
    truth = -torch.trapezoid(density * density.log(), x).item() - 0.5 * math.log(2 * math.pi * math.e)
    found = exact(rows, population)
    assert abs(found.mean - truth) < 3 * found.se
    assert found.se < 0.01


def test_entries_and_labels():
    # z_0 says which half a row is in, z_1 nothing: I(z_0; half) by quadrature, I(z_1; half) = 0.
    rng = np.random.default_rng(0)
    half = rng.integers(2, size=1500)
    mean = torch.from_numpy(np.stack([3.0 * half, rng.normal(size=1500)], 1))
    found = with_labels(Normals.draw(mean, torch.zeros(2), 0), half[:, None])
    x = np.linspace(-8, 11, 20001)
    one, other = (np.exp(-0.5 * (x - m) ** 2) / math.sqrt(2 * math.pi) for m in (0.0, 3.0))
    mixed = (one + other) / 2
    truth = np.trapezoid(0.5 * one * np.log(one / mixed) + 0.5 * other * np.log(other / mixed), x)
    for d, known in enumerate((truth, 0.0)):
        low = found["lower"][d, 0] - 2 * found["lower_se"][d, 0]
        high = found["upper"][d, 0] + 2 * found["upper_se"][d, 0]
        assert low <= known <= high
        assert high - low < 0.1


def test_labels_of_a_row_far_from_its_neighbours():
    """Fault: sums that leave a row out were differences, and 0 where it outweighs its neighbours by 1e16."""
    mean = normal_codes(1000, (1.0,)).mean
    mean[0] = mean.max() + 0.6  # 12 deviations: e^-72 of its own weight
    rows = Normals.draw(mean, torch.tensor(-6.0), 0)
    found = with_labels(rows, (mean > 0).long().numpy())
    lower, upper, error = found["lower"].item(), found["upper"].item(), found["upper_se"].item()
    assert 0.4 < lower < math.log(2) < upper + 2 * error < 1.1 and error < 0.12
    rare = (torch.arange(1000) == 7).long()[:, None].numpy()  # a label of one row's own
    assert abs(with_labels(rows, rare)["lower"].item()) < 0.2


@pytest.mark.slow
def test_the_marginal_s_divergence_has_the_errors_of_both_its_parts():
    """KL(q(z) || p(z)) = rate - I, of Gaussian codes whose rate spreads more than the bounds of I."""
    v, s2, covered = 9.0, 0.01, 0
    truth = v + s2 - 1 - math.log(v + s2)  # of two entries
    for seed in range(0, 24, 3):
        rows, fit, choose = (normal_codes(500, (v**0.5,) * 2, seed + k, math.log(s2)) for k in range(3))
        rate = 0.5 * (rows.mean.square() + s2 - 1 - math.log(s2)).sum(1)
        low, high = Latent(rows.z, rows, bracket(rows, fit, choose, rate=rate)).part()["marginal_kl_nats"]
        covered += low <= truth <= high
    assert covered == 8


def test_of_few_rows_there_is_no_interval_or_one_that_says_so():
    few, rows = normal_codes(FEWEST, (1.0,)), normal_codes(FEW, (1.0,))
    assert bracket(few).record()["few"] and not bracket(rows).record()["few"]
    for measured, tested in ((normal_codes(FEWEST - 1, (1.0,)), None), (rows, normal_codes(FEWEST - 1, (1.0,)))):
        with pytest.raises(CommandError, match=f"needs {FEWEST} measured rows or more, not {FEWEST - 1}"):
            bracket(measured, tested=tested)


def test_information_is_never_negative():
    assert Bracket(Mean(-0.5, 0.1), {"left-out": Mean(-0.4, 0.1)}, 50).ends == (0.0, 0.0)


def test_checks_tell_the_violated_from_the_held():
    found = bracket(normal_codes(400, (1.0,)), normal_codes(800, (1.0,), 1), normal_codes(200, (1.0,), 2))
    coarse = bracket(normal_codes(400, (1.0,), logvar=3.0))
    assert check_order("", found).passed
    assert check_usable("", Mean(found.upper.mean + 0.01, 0.1), found).passed
    assert not check_usable("", Mean(found.upper.mean + 1, 0.1), found).passed
    assert check_taus((1.0, 4.0), (found, coarse)).passed
    assert not check_taus((4.0, 1.0), (found, coarse)).passed
