"""A set's identity: it changes with the images, and with nothing else."""

import os

import numpy as np
import pytest
from PIL import Image

from dataset import registry
from dataset.base import Arrays, Dataset, Spec, array_identity
from utils import CommandError


def save(path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels // (1 + value % 2) * (1 + value % 2)).save(path)


@pytest.fixture
def pictures(tmp_path):
    for k in range(12):
        save(tmp_path / "a" / f"{k}.png", k)
    return tmp_path / "a"


def folder_identity(root, split="train", **kwargs) -> str:
    return registry.identity(registry.load("folder", split, root=root, **kwargs))


def test_it_is_that_of_the_whole_set_at_every_split_size_and_place(pictures, monkeypatch):
    known = folder_identity(pictures, size=8)
    assert known.startswith("12:") and known == folder_identity(pictures, "test", size=16, channels=1, limit=1)
    monkeypatch.setattr(registry, "HELD_COSTLY", 0)
    assert folder_identity(pictures, size=8) == known
    (pictures / "labels.csv").write_text("file,kind\n" + "".join(f"{k}.png,{k % 2}\n" for k in range(12)))
    assert folder_identity(pictures.rename(pictures.with_name("b")), size=8) == known


def test_as_many_other_images_are_another_set(pictures):
    known = [folder_identity(pictures, size=8)]
    (pictures / "0.png").write_bytes((pictures / "0.png").read_bytes() + b"\0")
    known.append(folder_identity(pictures, size=8))
    os.rename(pictures / "1.png", pictures / "100.png")
    known.append(folder_identity(pictures, size=8))
    os.unlink(pictures / "2.png")
    known.append(folder_identity(pictures, size=8))
    assert len(set(known)) == 4


def test_arrays_are_known_by_their_values_and_shape():
    values = np.random.default_rng(0).integers(0, 256, (9_000, 1, 4, 4), dtype=np.uint8)
    known = {array_identity(values), array_identity(values[:-1]), array_identity(values[..., :2]),
             array_identity(values // 2), Arrays(values).identity()}
    assert len(known) == 4  # the last is the first again
    codes = values.reshape(9_000, 16).astype(np.float32)
    made = [Dataset(Spec("latents", 16, 1, None, kind="points"), "train", np.arange(9_000), x) for x in (codes, -codes)]
    assert registry.identity(made[0]) != registry.identity(made[1])


@pytest.mark.parametrize("name", ["digits", "moons", "shapes3d"])
def test_built_in_sets_have_one_identity(name):
    size = {} if name == "moons" else {"size": 8}
    known = {registry.identity(registry.load(name, split, **size)) for split in registry.SPLITS}
    assert len(known) == 1


def test_pairs_of_another_dimension_are_another_set():
    three, four = (registry.identity(registry.load("mvn", "val", dim=dim)) for dim in (3, 4))
    assert three != four


@pytest.mark.parametrize("values", [
    np.zeros((4, 1, 8, 8)), np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 8, 8), np.uint8)])
def test_images_of_another_type_or_order_are_refused(values):
    with pytest.raises(CommandError, match=r"uint8 \[N, C, H, W\]"):
        Arrays(values)
