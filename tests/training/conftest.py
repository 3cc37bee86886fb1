"""Every training here is of a few rows, and draws nothing."""

import pytest
from runs import part

import training


@pytest.fixture(autouse=True)
def few(in_tmp, monkeypatch):
    monkeypatch.setattr(training, "load_data", lambda config, split: part(config.dataset, split))
    monkeypatch.setattr(training, "show_samples", lambda *_: None)
    monkeypatch.setattr(training.plots, "training_curve", lambda *_: None)
