"""FID while a model trains: the log, best.pth, and what becomes of both when a run goes on."""

import json

import numpy as np
import pytest
import torch

import experiment
import run
import training
from dataset import registry
from metrics import fid, progress
from modules import Classifier
from utils import load_checkpoint, save_checkpoint

EXP = "vanilla/digits_6steps_4unet"
TINY = "--model vanilla --dataset digits --device cpu --unets_channels 4 --diffusion_steps 6 --batch_size 38"
WORDS = [*TINY.split(), "--num_workers", "0"]


@pytest.fixture(autouse=True)
def few(in_tmp, monkeypatch):
    """38 digits, 24 samples and 30 reference images; a classifier to measure them by."""
    parts = {split: registry.load("digits", split, limit=38 if split == "train" else 12) for split in ("train", "val")}
    monkeypatch.setattr(training, "load_data", lambda config, split: parts[split])
    monkeypatch.setattr(training, "show_samples", lambda *_: None)
    monkeypatch.setattr(training.plots, "training_curve", lambda *_: None)
    monkeypatch.setattr(progress, "SAMPLES", 24)
    monkeypatch.setattr(progress, "REFERENCE_IMAGES", 30)
    torch.manual_seed(0)
    settings = {"channels": 1, "size": 8, "classes": 10, "width": 8}
    save_checkpoint("models/digits_classifier.pth", {"kind": "classifier", "config": settings,
                                                     "model": Classifier(**settings).state_dict()})


def train(words):
    return run.main(["--mode", "train", *WORDS, *words.split()])


def lines():
    with open(f"logs/{EXP}/metrics.jsonl") as file:
        return [json.loads(line) for line in file]


def test_the_distance_is_in_the_log_and_its_least_is_kept(capsys):
    assert train("--epochs 3 --fid_epochs 2") == 0
    scores = {line["epoch"]: line["fid"] for line in lines() if "fid" in line}
    assert list(scores) == [2, 3] and all(line["fid_se"] > 0 for line in lines() if "fid" in line)
    best = load_checkpoint(f"models/{EXP}/best.pth")
    assert scores[best["epoch"]] == min(scores.values()) == best["best"]
    assert load_checkpoint(f"models/{EXP}/last.pth")["best"] == best["best"]
    assert run.main(["--mode", "eval", *WORDS, "--best", "--sampling_number", "2", "--sample_steps", "2"]) == 0
    assert f"models/{EXP}/best.pth (epoch {best['epoch']})" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_goes_on_knows_its_best(monkeypatch):
    """What is worse than before the interruption replaces nothing."""
    scores = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(progress.Progress, "__call__", lambda self, draw: {"fid": next(scores), "fid_se": 0.1})
    assert train("--epochs 2 --fid_epochs 1") == 0
    assert train("--epochs 4 --fid_epochs 1") == 0
    assert [line["fid"] for line in lines()] == [3, 1, 2, 1.5]
    assert load_checkpoint(f"models/{EXP}/best.pth")["epoch"] == 2
    scores = iter([9.0])
    assert train("--epochs 1 --fid_epochs 1 --no-resume") == 0  # and a new run keeps nothing of an old one
    assert load_checkpoint(f"models/{EXP}/best.pth")["best"] == 9


def test_samples_are_the_same_every_time_and_are_measured_as_their_files_are():
    dataset = training.load_data(None, "train")
    measure = progress.Progress(dataset, "models/digits_classifier.pth", torch.device("cpu"), 7)

    def draw(numbers):  # the images of the set themselves, in [-1, 1]
        return dataset.batch(numbers.numpy())

    found = measure(draw)
    assert found == measure(draw) and found["fid"] > 0
    images = fid.images_of(dataset, 1, 24)
    expected = fid.frechet(measure.reference, fid.measure(images, measure.extractor))
    assert found["fid"] == pytest.approx(expected.value, rel=1e-6)
    np.testing.assert_array_equal(images.read(np.arange(24)).max(), 255)


@pytest.mark.parametrize(("words", "culprit"), [
    ("--mode train --dataset moons --fid_epochs 1", "--fid_epochs"),
    ("--mode train --dataset digits --model_folder elsewhere --fid_epochs 1", "elsewhere/digits_classifier.pth"),
    ("--mode train --dataset digits --fid_epochs 0", "--fid_epochs"),
    ("--mode eval --dataset digits --best", "best.pth does not exist"),
    ("--mode eval --dataset digits --best --epochs 2", "--best and --epochs"),
])
def test_what_cannot_be_is_one_line_before_anything_is_made(words, culprit, in_tmp, capsys, monkeypatch):
    monkeypatch.setattr(training, "load_data", experiment.load_data)
    assert run.main([*words.split(), "--model", "vanilla", "--device", "cpu"]) == 2
    line = capsys.readouterr().err
    assert culprit in line and line.count("\n") == 1
    assert not (in_tmp / "logs").exists()
