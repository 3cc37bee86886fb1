"""Checkpoints of tiny models with fresh weights, as training writes them: for tests of what comes after training."""

from __future__ import annotations

from pathlib import Path

import torch

import commandline
import config
import experiment
from dataset import registry
from training import Run, Stepper

SMALL = "--unets_channels 4 --encoder_channels 4 --diffusion_steps 4 --a_dim 2 --device cpu"


def checkpoint(words: str, epoch: int = 1) -> Path:
    """Write model-{epoch}.pth of the model that a command line for run.py names; return its path."""
    made = commandline.parse(f"{SMALL} --num_workers 0 {words}".split(), "run.py", registry.SPECS).config
    dataset = experiment.load_data(made, "train")
    gaussian = experiment.fit_gaussian(dataset, 0)
    device = torch.device("cpu")
    stepper = Stepper(experiment.build_fresh(made, dataset.shape, gaussian, device), made, device)
    record = {"kind": made.model, "shape": list(dataset.shape), "rows": len(dataset), "gaussian": gaussian.state(),
              "levels": dataset.levels, "unit": stepper.model.unit, "network": None}
    folder = config.folder(made, "models")
    run = Run(stepper, dataset, made, folder, config.folder(made, "logs"), record)
    stepper.step = epoch * run.epoch_steps
    run.save(f"model-{epoch}.pth")
    return folder / f"model-{epoch}.pth"
