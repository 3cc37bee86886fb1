"""The rendered room: six factors in the published order, each of them visible, smooth and the same on every call."""

import numpy as np
import pytest

from dataset import shapes3d

CENTRE = (5, 5, 0, 4, 2, 7)  # cyan floor and walls, a red sphere, seen from the front


def index(**changes) -> int:
    """The picture of CENTRE with some factors changed, by name (underscores for spaces)."""
    values = [changes.get(name.replace(" ", "_"), value) for name, value in zip(shapes3d.FACTORS, CENTRE, strict=True)]
    return int(np.ravel_multi_index(values, shapes3d.FACTOR_SIZES))


def red(**changes) -> np.ndarray:
    """Where the red object is, for a picture of 32 x 32: bool [32, 32]."""
    picture = shapes3d.render([index(**changes)], 32)[0].astype(int)
    return picture[0] > picture[1:].max(axis=0) + 60


def fill(mask: np.ndarray) -> float:
    """The share of its bounding box that an outline fills."""
    return mask.sum() / (mask.any(axis=0).sum() * mask.any(axis=1).sum())


def test_index_order_is_that_of_the_published_set():
    assert shapes3d.COUNT == 480_000
    np.testing.assert_array_equal(shapes3d.factors([0, 1, 15, 60, 480]), [
        [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0],
    ])
    np.testing.assert_array_equal(shapes3d.factors([479_999]), [[9, 9, 9, 7, 3, 14]])


def test_a_picture_does_not_depend_on_its_batch_nor_on_the_call():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, shapes3d.COUNT, 300)
    together = shapes3d.render(numbers, 16)
    assert together.dtype == np.uint8 and together.shape == (300, 3, 16, 16)
    np.testing.assert_array_equal(shapes3d.render(numbers[270:280], 16), together[270:280])
    shapes3d._light.cache_clear()
    np.testing.assert_array_equal(shapes3d.render(numbers[:5], 16), together[:5])


@pytest.mark.parametrize("place", range(6))
def test_every_step_of_every_factor_shows(place):
    numbers = [index(**{shapes3d.FACTORS[place].replace(" ", "_"): k}) for k in range(shapes3d.FACTOR_SIZES[place])]
    pictures = shapes3d.render(numbers, 32).astype(int)
    for first in range(len(pictures)):
        for second in range(first):
            changed = np.abs(pictures[first] - pictures[second]).max(axis=0) > 12
            assert changed.sum() >= 8, (first, second)


def test_each_hue_colours_its_own_part():
    base = shapes3d.render([index()], 32)[0].astype(int)
    assert red()[8:24, 12:20].mean() > 0.6  # the object stands in the middle
    changed = {}
    for name in ("floor_hue", "wall_hue", "object_hue"):
        other = shapes3d.render([index(**{name: 8})], 32)[0].astype(int)
        changed[name] = np.abs(other - base).max(axis=0) > 40
    assert changed["floor_hue"][-4:].all() and not changed["floor_hue"][:6].any()
    assert changed["wall_hue"][:4].all() and not changed["wall_hue"][-6:].any()
    assert (changed["floor_hue"] & changed["wall_hue"]).sum() <= 40  # pixels of the edge between them
    assert (changed["object_hue"] & red()).sum() >= 0.9 * red().sum()


def test_objects_grow_with_scale_and_shapes_have_their_outlines():
    heights = [red(scale=k, shape=0).any(axis=1).sum() for k in range(8)]
    assert all(np.diff(heights) >= 0) and heights[-1] >= 1.4 * heights[0]
    cube, cylinder, sphere, capsule = (red(shape=k, scale=7) for k in range(4))
    width = {name: mask.any(axis=0).sum() for name, mask in (("sphere", sphere), ("capsule", capsule))}
    assert abs(width["sphere"] - sphere.any(axis=1).sum()) <= 1  # round
    assert capsule.any(axis=1).sum() >= 1.4 * width["capsule"]  # tall
    assert fill(cube) > fill(cylinder) + 0.02 > fill(sphere) + 0.04


def test_the_camera_turns_from_side_to_side():
    """Seen from -30 and +30 degrees, the corner of the room lies right and left."""
    left, right = shapes3d.render([index(orientation=0), index(orientation=14)], 32).astype(int)
    edge = [np.abs(np.diff(picture[1, 2])).argmax() for picture in (left, right)]
    assert edge[0] > 18 and edge[1] < 13


def test_edges_are_smooth():
    """Some pixels of the outline hold a mixture of object and background."""
    picture = shapes3d.render([index()], 32)[0].astype(int)
    share = picture[0] - picture[1]
    assert ((share > 0.2 * share.max()) & (share < 0.8 * share.max()) & (picture[1] > 10)).sum() >= 8


def test_a_size_is_a_finer_look_at_the_same_scene():
    numbers = [index(shape=k) for k in range(4)]
    fine = shapes3d.render(numbers, 64).reshape(4, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.abs(fine - shapes3d.render(numbers, 32)).mean() < 1.0


def test_coverage_is_where_a_hue_changes_the_picture():
    first, other = shapes3d.render([0, 4800], 16).astype(int)  # two wall hues
    masks = shapes3d.coverage([0, 4800], 16)
    assert masks.shape == (2, 3, 16, 16) and np.array_equal(masks[0], masks[1])
    assert np.allclose(masks.sum(1), 1)
    assert np.array_equal((first != other).any(0), masks[0, 1] > 0)
