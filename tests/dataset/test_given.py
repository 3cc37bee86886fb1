"""z that comes with images: its recipe, its channel, and the exact information in it."""

import math

import numpy as np
import pytest

from dataset import given, registry, shapes3d
from dataset.given import Recipe
from utils import CommandError

SPEC = registry.SPECS["shapes3d"]


def of(*labels, rows=20_000, **options):
    numbers = np.random.default_rng(0).integers(0, 480_000, rows)
    found = shapes3d.factors(numbers)
    return found, given.of_labels(SPEC, found, numbers, Recipe(labels, **options))


def test_labels_as_one_hot_and_as_numbers():
    labels, found = of("floor_hue", "shape")
    assert found.z.shape == (20_000, 14) and found.z.dtype == np.float32
    np.testing.assert_array_equal(found.z[:, :10].argmax(1), labels[:, 0])
    np.testing.assert_array_equal(found.z[:, 10:].argmax(1), labels[:, 4])
    assert found.exact_mi == pytest.approx(math.log(40))
    _, numbers = of("floor_hue", "shape", code="standardised")
    assert numbers.z.shape == (20_000, 2)
    np.testing.assert_allclose(numbers.z.std(0), 1, atol=0.02)


def test_the_exact_information_of_a_channel_is_that_of_its_table():
    # I of the joint table p(sent, came) of ten values, against the formula and the draws.
    error, size = 0.3, 10
    table = np.full((size, size), error / (size - 1) / size)
    np.fill_diagonal(table, (1 - error) / size)
    truth = (table * np.log(table * size * size)).sum()
    labels, found = of("floor_hue", error=error)
    assert found.exact_mi == pytest.approx(truth)
    came = found.classes[1][:, 0]
    assert (came != labels[:, 0]).mean() == pytest.approx(error, abs=0.01)
    wrong = np.bincount((came - labels[:, 0]) % size, minlength=size)[1:]
    np.testing.assert_allclose(wrong / wrong.sum(), 1 / 9, atol=0.015)


def test_independent_z_is_even_and_says_nothing():
    labels, found = of("shape", "independent")
    assert found.exact_mi == 0
    joint = np.histogram2d(labels[:, 4], found.classes[1][:, 0], bins=4)[0]
    np.testing.assert_allclose(joint / joint.sum(), 1 / 16, atol=0.006)


@pytest.mark.parametrize("labels", [("colour",), ("shape", "shape"), ("independent",)])
def test_what_is_no_label_is_refused(labels):
    with pytest.raises(CommandError, match="--z_from"):
        given.width(SPEC, Recipe(labels))


def test_splits_and_limits_agree_on_z():
    recipe = Recipe(("class",), error=0.5)
    whole = registry.load("digits", "train", z=recipe)
    part = registry.load("digits", "train", limit=50, z=recipe)
    np.testing.assert_array_equal(whole.given[:50], part.given)
    assert whole.exact_mi is None  # ten classes that are not equally frequent
    assert whole.given.shape == (len(whole), 10)
