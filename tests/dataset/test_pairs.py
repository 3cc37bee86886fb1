"""Pairs of pictures: what they share, by quadrature, and what they look like."""

import math

import numpy as np
import pytest

from dataset import pairs, registry
from dataset.given import Recipe


@pytest.mark.parametrize(("nats", "parameters"), [(0.5, 2), (3.0, 4), (10.0, 4)])
def test_the_copulas_share_the_chosen_nats(nats, parameters):
    # I of one pair of standard normals of that correlation: h(t) - h(t | s), with h(t | s) averaged over s on a grid.
    rho = pairs.correlation(nats, parameters)
    s = np.linspace(-9, 9, 2001)
    density = np.exp(-0.5 * s**2) / math.sqrt(2 * math.pi)
    spread = math.sqrt(1 - rho * rho)
    n = np.linspace(-9, 9, 2001)
    noise = np.exp(-0.5 * n**2) / math.sqrt(2 * math.pi)
    # log p(t | s) / p(t) at t = rho s + spread n, integrated over s and n
    t = rho * s[:, None] + spread * n
    gain = -0.5 * n**2 - math.log(spread) + 0.5 * t**2
    found = np.trapezoid(np.trapezoid(gain * noise, n, axis=1) * density, s)
    assert parameters * found == pytest.approx(nats, abs=1e-6)


def test_draws_have_that_correlation():
    s, t = pairs.draw(40_000, 3.0, 2)
    for k in range(2):
        assert np.corrcoef(s[:, k], t[:, k])[0, 1] == pytest.approx(pairs.correlation(3.0, 2), abs=0.01)
        assert t[:, k].std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(s[:, 0], t[:, 1])[0, 1]) < 0.02


@pytest.mark.parametrize("name", ["blobs", "rectangles"])
def test_a_picture_determines_its_parameters(name):
    # Moments and mass give the centre and the sides back, before rounding; rounding moves them by little.
    u = np.random.default_rng(0).random((200, pairs.PARAMETERS[name]))
    pixels = np.rint(255 * pairs.RENDER[name](u, 16)) / 255
    mass = pixels.sum((1, 2, 3))
    place = (np.arange(16) + 0.5) / 16
    centre = np.stack([(pixels[:, 0].sum(1) * place).sum(1) / mass, (pixels[:, 0].sum(2) * place).sum(1) / mass], 1)
    expected = 0.25 + 0.5 * u[:, :2]
    assert np.abs(centre - expected).max() < 0.02
    if name == "rectangles":
        sides = 0.15 + 0.3 * u[:, 2:]
        np.testing.assert_allclose(mass / 256, sides.prod(1), atol=0.002)


@pytest.mark.parametrize("name", ["blobs", "rectangles"])
def test_a_split_has_the_second_pictures_as_z(name):
    one = registry.load(name, "test", limit=300, z=Recipe(nats=8.0))
    other = registry.load(name, "test", limit=300, z=Recipe(nats=0.0))
    assert one.images.dtype == np.uint8 and one.shape == (1, 16, 16)
    assert one.given.shape == (300, 256) and one.given.dtype == np.float32
    assert one.given.min() >= -1 and one.given.max() <= 1
    np.testing.assert_array_equal(one.images, other.images)
    assert (one.exact_mi, other.exact_mi) == (8.0, 0.0)
    x = one.images.reshape(300, -1) / 127.5 - 1
    near = np.corrcoef(x.ravel(), one.given.ravel())[0, 1]
    assert near > 0.9 > 0.7 > np.corrcoef(x.ravel(), other.given.ravel())[0, 1]
    mean, logvar, value = one.channel.normal
    assert ((value - mean) / np.exp(logvar / 2)).std() == pytest.approx(1, abs=0.1)
