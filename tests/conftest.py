import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Run a test inside an empty folder, so that default roots (./models, ./imgs ...) are its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
