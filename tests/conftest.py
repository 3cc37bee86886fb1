"""What every test stands on: networks and pictures as small as they can be, since what most tests ask of them is that
they are there. A test of a network or a picture itself asks for `full_networks` or `full_pictures`."""

import matplotlib
import pytest
import torch

import models
import plots

matplotlib.use("Agg")
torch.set_num_threads(1)

FULL = {**models.UNET}, {**models.MULTIPLIERS}
SMALL = {"blocks": 1, "attention": (1,)}, {model: levels[:2] for model, levels in models.MULTIPLIERS.items()}


def use_networks(unet: dict, multipliers: dict) -> None:
    models.UNET.update(unet)
    models.MULTIPLIERS.update(multipliers)


use_networks(*SMALL)


@pytest.fixture(scope="module")
def full_networks():
    """Networks of the suite's own depth, for a module of tests."""
    use_networks(*FULL)
    yield
    use_networks(*SMALL)


@pytest.fixture(autouse=True)
def small_pictures(request, monkeypatch):
    """Figures drawn coarsely, and not laid out, unless the test asks for `full_pictures`."""
    save = plots.save

    def without_layout(figure, path):
        figure.set_layout_engine("none")
        save(figure, path)

    if "full_pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "DPI", 20)
        monkeypatch.setattr(plots, "save", without_layout)


@pytest.fixture
def full_pictures():
    """Figures as a user sees them."""


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Run a test inside an empty folder, so that default roots (./models, ./imgs ...) are its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
