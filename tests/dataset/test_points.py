"""Points of exactly known law: densities that integrate to one, entropies and information known by hand."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import stats

from dataset import points, registry
from utils import CommandError

PLANE = ["scg", "line", "mixture",
         *(pytest.param(name, marks=pytest.mark.slow) for name in ("dino", "moons", "circle"))]


@lru_cache
def grid(name: str, side: int = 201) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Midpoints of cells over a square that holds the set, float64 [side^2, 2], log p there, the area of a cell."""
    half = 5.5 if name in ("scg", "mixture") else 3.0
    middle = (torch.arange(side, dtype=torch.float64) + 0.5) * (2 * half / side) - half
    x = torch.cartesian_prod(middle, middle)
    return x, points.law(name).log_density(x), (2 * half / side) ** 2


@pytest.mark.parametrize("name", PLANE)
def test_density_is_one_in_all_and_its_coordinates_are_standard(name):
    x, log_p, cell = grid(name)
    p = log_p.exp() * cell
    tolerance = 0.03 if name == "line" else 1e-5  # the square has an edge, which cells cut
    assert p.dtype == torch.float64
    assert p.sum() == pytest.approx(1, abs=tolerance)
    np.testing.assert_allclose((p[:, None] * x).sum(0), 0, atol=tolerance)
    np.testing.assert_allclose((p[:, None] * x**2).sum(0), 1, atol=2 * tolerance)


@pytest.mark.parametrize("name", PLANE)
def test_samples_follow_the_density(name):
    """Mean of -log p over the samples is the entropy, within 4 standard errors; so are the first two moments."""
    test = registry.load(name, "test")
    x = test.raw(range(len(test)))
    surprise = -test.log_density(x[:5000])
    where, log_p, cell = grid(name)
    entropy = -(torch.xlogy(log_p.exp(), log_p.exp())).sum() * cell
    error = surprise.std() / len(surprise) ** 0.5
    assert surprise.isfinite().all()
    assert abs(surprise.mean() - entropy) < 4 * error + (0.06 if name == "line" else 1e-4)
    np.testing.assert_allclose(x.mean(0), 0, atol=4 / len(x) ** 0.5)
    np.testing.assert_allclose(x.var(0), 1, atol=0.04)
    share = torch.stack([(where[:, 0] * where[:, 1] * log_p.exp()).sum() * cell, (x[:, 0] * x[:, 1]).mean()])
    assert abs(share[0] - share[1]) < 0.04  # the cross moment: axes are not exchanged


def test_entropies_known_by_formula():
    scg = points.law("scg")
    assert 0.5 * np.linalg.slogdet(2 * np.pi * np.e * scg.covariances[0])[1] == pytest.approx(1.218489, abs=1e-6)
    inside = points.law("line").log_density(torch.zeros(1, 2))
    assert -inside.item() == pytest.approx(2.484907, abs=1e-6)
    assert points.law("line").log_density(torch.tensor([[1.8, 0.0]])).item() == -np.inf


def test_mixture_agrees_with_scipy():
    x = np.random.default_rng(0).normal(size=(50, 2))
    law = points.MIXTURE
    parts = zip(law.weights, law.means, law.covariances, strict=True)
    expected = np.log(sum(pi * stats.multivariate_normal(m, s).pdf(x) for pi, m, s in parts))
    np.testing.assert_allclose(law.log_density(torch.from_numpy(x)), expected, atol=1e-12)
    assert law.weights.sum() == pytest.approx(1) and len(law.weights) >= 3


def test_a_circle_agrees_with_its_closed_form():
    """exp(-(r^2 + R^2) / 2 s^2) I_0(r R / s^2) / (2 pi s^2)."""
    from scipy.special import ive

    law = points.law("circle")
    corners = np.linspace(law.starts, law.ends, 50)  # [50, S, 2]: the circle is a polygon of many sides
    radius, s2 = np.linalg.norm(corners, axis=-1).mean(), law.jitter**2
    r = np.linspace(radius - 0.2, radius + 0.2, 9)
    angle = np.linspace(0, 6, 9)
    x = torch.from_numpy(np.stack([r * np.cos(angle), r * np.sin(angle)], 1))
    expected = -((r - radius) ** 2) / (2 * s2) + np.log(ive(0, r * radius / s2)) - np.log(2 * np.pi * s2)
    np.testing.assert_allclose(law.log_density(x), expected, atol=5e-3)


def test_density_far_from_a_curve_is_finite_and_falls_as_a_normal():
    law = points.law("dino")
    far = law.log_density(torch.tensor([[40.0, 0.0], [80.0, 0.0]], dtype=torch.float64))
    distance = np.array([40.0, 80.0]) - law.starts[:, 0].max()
    assert far.isfinite().all()
    np.testing.assert_allclose(far, -0.5 * (distance / law.jitter) ** 2, rtol=0.02)


@pytest.mark.parametrize("name", [*PLANE, "mvn"])
def test_splits_have_their_sizes_and_differ(name):
    parts = {split: registry.load(name, split) for split in registry.SPLITS}
    assert [len(part) for part in parts.values()] == [20_000 if name == "scg" else 8_000, 2_000, 20_000]
    first = [part.raw([0, 1]) for part in parts.values()]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    again = registry.load(name, "train", limit=7)
    assert torch.equal(again.batch(range(7)), parts["train"].batch(range(7))) and len(again) == 7
    assert again.levels is None and again.shape == (2,) and again.spec.exact


@pytest.mark.parametrize("dim, known", [(2, 0.2939), (3, 0.4133), (5, 0.5928), (25, 1.2922),
                                        pytest.param(50, 1.6243, marks=pytest.mark.slow)])
def test_information_of_normal_pairs_whose_correlations_are_all_one_half(dim, known):
    pairs = registry.load("mvn", "train", dim=dim)
    assert pairs.exact_mi == pytest.approx(known, abs=5e-5)
    assert pairs.shape == (dim,) and pairs.given.shape == (8_000, dim) and pairs.given.dtype == np.float32


def test_z_of_normal_pairs_is_normal_given_x_along_its_own_axes():
    """The log-density of z given x is that of the pair over that of x."""
    dim, pairs = 3, registry.load("mvn", "val", dim=3, limit=200)
    mean, logvar, value = pairs.channel.normal
    given = stats.norm(mean, np.exp(logvar / 2)).logpdf(value).sum(1)[:200]
    both, x = (stats.multivariate_normal(np.zeros(n), points.mvn_covariance(dim)[:n, :n]) for n in (2 * dim, dim))
    joint = np.concatenate([pairs.images, pairs.given], axis=1)
    np.testing.assert_allclose(given, both.logpdf(joint) - x.logpdf(pairs.images), atol=1e-5)


def test_samples_of_normal_pairs_carry_that_information():
    """A plug-in estimate from the sample covariance, whose bias at 20,000 points is near dim^2 / 2N."""
    test = registry.load("mvn", "test", dim=3)
    both = np.cov(np.concatenate([test.images, test.given], axis=1).T)
    assert points.gaussian_mutual_information(both, 3) == pytest.approx(0.4133, abs=0.03)
    x = test.raw(range(100))
    normal = stats.multivariate_normal(np.zeros(3), np.full((3, 3), 0.5) + 0.5 * np.eye(3))
    np.testing.assert_allclose(test.log_density(x), normal.logpdf(x.double()), atol=1e-9)


def test_information_of_other_normals():
    one = np.array([[1, 0.75], [0.75, 1]])
    assert points.gaussian_mutual_information(one, 1) == pytest.approx(0.4133, abs=5e-5)
    two = np.kron(np.array([[1, 0.8], [0.8, 1]]), np.eye(2))  # two pairs, each at .8
    assert points.gaussian_mutual_information(two, 2) == pytest.approx(1.0217, abs=5e-5)
    scaled = np.diag([3.0, 0.1]) @ one @ np.diag([3.0, 0.1])
    assert points.gaussian_mutual_information(scaled, 1) == pytest.approx(0.4133, abs=5e-5)


@pytest.mark.parametrize("kwargs, flag", [({"size": 32}, "--input_size"), ({"channels": 3}, "--input_channels")])
def test_flags_of_images_are_refused_for_points(kwargs, flag):
    with pytest.raises(CommandError, match=flag):
        registry.load("moons", "train", **kwargs)
