"""Trained models of earlier days: those that come with the suite, and a checkpoint of an older layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run
from experiment import load
from scripts.report_sources import Roots, locate

pytestmark = pytest.mark.usefixtures("full_networks")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clothes():
    return load(ROOT / "examples/fmnist", device="cpu")


@pytest.mark.slow
def test_the_shipped_model_samples_encodes_and_gives_back(clothes):
    x = clothes.sample(2, steps=5)
    z = clothes.encode(x)
    assert x.shape == (2, 1, 16, 16) and z.shape == (2, 32)
    again = clothes.reconstruct(x, steps=10)
    assert (again - x).square().mean() < 0.1 * x.var()


def test_it_is_small_and_opens_as_a_page(clothes):
    folder = ROOT / "examples/fmnist"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2 * 2**20
    assert locate(str(folder), Roots(ROOT / "models")) == folder / "model.safetensors"


def test_a_checkpoint_from_before_the_packages_draws_the_same_pictures(in_tmp):
    """Made by the last commit with 38 files on the top level, with the two pictures that it drew then."""
    stored = ROOT / "tests" / "data"
    folder = in_tmp / "models" / "digits_2d_0.1mmd_0.1zdrop_20steps_4unet_4enc"
    folder.mkdir(parents=True)
    shutil.copy(stored / "before_layout.pth", folder / "model-1.pth")
    words = "--mode eval --dataset digits --a_dim 2 --unets_channels 4 --encoder_channels 4 --diffusion_steps 20"
    words += " --z_dropout 0.1 --sampling_number 2 --sampler dpmpp --sample_steps 5 --device cpu"
    assert run.main(words.split()) == 0
    pictures = sorted((in_tmp / "imgs").rglob("sample-*.png"))
    drawn = np.stack([np.asarray(Image.open(path)) for path in pictures]).astype(int)
    assert np.abs(drawn - np.load(stored / "before_layout.npz")["images"]).max() <= 1  # a grey level of 256
