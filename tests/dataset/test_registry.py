"""The registry, splits, the lattice of values, and batches."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made import pictures, refusal, save

from dataset import base, registry
from utils import CommandError


def test_flags_can_be_checked_without_torch():
    heavy = "('torch', 'torchvision', 'sklearn', 'h5py')"
    code = f"import dataset.registry, sys; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(registry.__file__).parents[1]).returncode == 0


@pytest.mark.parametrize("name, count", [("digits", 1797), ("shapes3d", 480_000)])
def test_named_splits_are_disjoint_complete_and_the_same_each_time(name, count):
    rows = [registry.load(name, split).rows for split in registry.SPLITS]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(count))
    np.testing.assert_array_equal(rows[2], registry.load(name, "test").rows)


def test_digits_lie_on_seventeen_levels():
    digits = registry.load("digits", "test")
    raw = digits.raw(range(len(digits)))
    assert len(digits) >= 500 and digits.shape == (1, 8, 8) and digits.levels == 17
    assert raw.dtype == torch.uint8 and raw.min() == 0 and raw.max() == 16
    x = digits.batch([5, 3])
    torch.testing.assert_close((x + 1) * 8, raw[[5, 3]].float(), rtol=0, atol=0)
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(raw[:, 0].numpy(), load_digits().images[digits.rows])
    np.testing.assert_array_equal(digits.labels[:, 0], load_digits().target[digits.rows])


def test_a_resized_set_is_rounded_to_uint8_once_and_keeps_the_range():
    digits = registry.load("digits", "val", size=16, channels=3, limit=40)
    assert digits.levels == 256 and digits.shape == (3, 16, 16) and len(digits) == 40
    x = digits.batch(range(40))
    steps = (x.double() + 1) * 127.5
    assert (steps - steps.round()).abs().max() < 1e-4
    assert x.max() > 0.9 and x.min() == -1 and torch.equal(x[:, 0], x[:, 2])


def test_resizing_is_antialiased():
    stripes = np.zeros((1, 1, 32, 32), dtype=np.uint8)
    stripes[..., ::2] = 255  # without a filter, every other column would give black or white
    small = base.resize(stripes, 8)
    assert abs(int(small[0, 0, 4, 4]) - 128) < 20


def test_grey_is_luma_and_an_image_does_not_depend_on_its_batch():
    one = registry.load("shapes3d", "val", size=16, channels=1, limit=6)
    colour = registry.load("shapes3d", "val", size=16, limit=6)
    luma = (colour.raw(range(6)).double() * torch.tensor([0.299, 0.587, 0.114])[:, None, None].double()).sum(1)
    assert (one.raw(range(6))[:, 0].double() - luma).abs().max() <= 0.5 + 1e-9
    assert torch.equal(colour.raw([4]), colour.raw(range(6))[4:5])


def test_only_the_rows_that_the_caller_names_are_mirrored():
    shapes = registry.load("shapes3d", "train", size=16, limit=4)
    x = shapes.batch(range(4))
    mirrored = shapes.batch(range(4), flip=torch.tensor([False, True, False, True]))
    assert torch.equal(mirrored[[0, 2]], x[[0, 2]])
    assert torch.equal(mirrored[[1, 3]], x[[1, 3]].flip(-1)) and not torch.equal(mirrored[1], x[1])


def test_flips_only_where_they_make_sense():
    flipped = {name for name, spec in registry.SPECS.items() if spec.flip}
    assert flipped.isdisjoint({"digits", "mnist", "dsprites", "shapes3d", "3dshapes", "folder"})
    assert "celeba" in flipped


@pytest.mark.parametrize("kwargs, culprit", [({"channels": 2}, "--input_channels 2"), ({"size": -1}, "--input_size")])
def test_sizes_that_make_no_picture_are_refused(kwargs, culprit):
    assert culprit in refusal("digits", "train", **kwargs)


def test_an_unknown_set_is_refused_by_name():
    assert "imagenet" in refusal("imagenet", "train")


# ---------------------------------------------------------------------------------------------------------------------
# Batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_batches_are_the_held_ones_in_the_callers_order(monkeypatch, num_workers):
    lists = [[3, 1], [0, 5, 5], [2]]
    held = registry.load("shapes3d", "test", size=8, limit=6)
    monkeypatch.setattr(registry, "HELD_COSTLY", 0)
    far = registry.load("shapes3d", "test", size=8, limit=6)
    assert held.images is not None and far.images is None

    state = torch.random.get_rng_state()
    near = list(registry.stream(held, iter(lists)))
    streamed = list(registry.stream(far, iter(lists), num_workers=num_workers))
    assert torch.equal(torch.random.get_rng_state(), state)
    for (indices, raw), (same, other), asked in zip(near, streamed, lists, strict=True):
        assert indices.tolist() == same.tolist() == asked
        assert torch.equal(raw, other) and torch.equal(raw, far.raw(asked))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named_in_one_line_even_by_a_worker(tmp_path, monkeypatch, num_workers):
    for name in ("train/0.png", "train/1.png", "val/2.png", "test/3.png"):
        save(tmp_path / name, pictures(1, 8, 8, 3)[0])
    broken = tmp_path / "train" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert str(broken) in refusal("folder", "train", root=tmp_path, size=8)
    monkeypatch.setattr(registry, "HELD_COSTLY", 0)
    train = registry.load("folder", "train", root=tmp_path, size=8)
    with pytest.raises(CommandError, match=r"^[^\n]*1\.png[^\n]*$"):
        list(registry.stream(train, [[0], [1, 0]], num_workers=num_workers))
