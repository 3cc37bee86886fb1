"""The trained models that come with the suite."""

from pathlib import Path

import pytest

from experiment import load
from scripts.report_sources import Roots, locate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clothes():
    return load(ROOT / "examples/fmnist", device="cpu")


def test_the_shipped_model_samples_encodes_and_gives_back(clothes):
    x = clothes.sample(4, steps=10)
    z = clothes.encode(x)
    assert x.shape == (4, 1, 16, 16) and z.shape == (4, 32)
    again = clothes.reconstruct(x, steps=20)
    assert (again - x).square().mean() < 0.1 * x.var()


def test_it_is_small_and_opens_as_a_page(clothes):
    folder = ROOT / "examples/fmnist"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2 * 2**20
    assert locate(str(folder), Roots(ROOT / "models")) == folder / "model.safetensors"
