"""What every test stands on: networks and pictures as small as they can be, since what most tests ask of them is that
they are there. A test of a network or a picture itself asks for `full_networks` or `full_pictures`."""

import gc
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import models
import plots
from utils import atomic

matplotlib.use("Agg")
torch.set_num_threads(1)

FULL = {**models.UNET}, {**models.MULTIPLIERS}
SMALL = {"blocks": 1, "attention": ()}, {model: levels[:1] for model, levels in models.MULTIPLIERS.items()}


def use_networks(unet: dict, multipliers: dict) -> None:
    models.UNET.update(unet)
    models.MULTIPLIERS.update(multipliers)


use_networks(*SMALL)


def pytest_collection_finish():
    """What was imported by now stays: collections of garbage need not look at it every time."""
    gc.freeze()


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

    def save_coarse(figure, path):
        figure.set_layout_engine("none")
        figure.set_dpi(20)
        if Path(path).suffix != ".png":
            return save(figure, path)
        with atomic(path) as temporary:
            FigureCanvasAgg(figure).print_png(temporary)  # draws once, and savefig twice

    if "full_pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "save", save_coarse)


@pytest.fixture
def full_pictures():
    """Figures as a user sees them."""


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Run a test inside an empty folder, so that default roots (./models, ./imgs ...) are its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
