"""Small training runs for the tests of training, and what becomes of one that is stopped."""

import functools
import json
import os
import signal
from pathlib import Path

import torch

import run
import training
from dataset import registry
from utils import load_checkpoint

ROOT = Path(__file__).parents[2]
ROWS, BATCH = 38, 16  # two steps an epoch, and six rows left over
TINY = (
    f"--mode train --device cpu --unets_channels 8 --encoder_channels 8 --diffusion_steps 20 --a_dim 4 --epochs 3 "
    f"--batch_size {BATCH} --save_epochs 2"
)
EVERYTHING = (
    "--dataset digits --unets_channels 4 --encoder_channels 4 --kld_weight 0.1 --mmd_weight 0.1 --z_dropout 0.2 "
    "--dropout 0.1"
)
EXP = "digits_4d_0.1kld_0.1mmd_0.2zdrop_20steps_4unet_4enc"
VANILLA = "--model vanilla --dataset moons"  # milliseconds a step
VANILLA_EXP = "vanilla/moons_20steps_8unet"


@functools.cache
def part(name, split):
    return registry.load(name, split, limit=ROWS if split == "train" else 12)


def train(words):
    return run.main(f"{TINY} {words}".split())


def last(exp=VANILLA_EXP, name="last.pth"):
    return load_checkpoint(Path("models") / exp / name)


def metrics(exp=VANILLA_EXP):
    return (Path("logs") / exp / "metrics.jsonl").read_text()


def lines(exp=VANILLA_EXP):
    return [json.loads(line) for line in metrics(exp).splitlines()]


class Killed(BaseException):
    """The end of a process, as far as a test can have it: nothing may answer to it."""


def at_step(monkeypatch, step, happens):
    """Let something happen in place of the update of a step."""
    update = training.Stepper.update

    def wrapped(self, *args):
        if self.step == step:
            happens(self)
        return update(self, *args)

    monkeypatch.setattr(training.Stepper, "update", wrapped)


def kill(*_):
    raise Killed


def terminate(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def assert_equal(one, two, at="record"):
    """Nested records, tensors bit for bit."""
    assert type(one) is type(two), at
    if isinstance(one, dict):
        assert one.keys() == two.keys(), at
        for key in one:
            assert_equal(one[key], two[key], f"{at}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), at
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{at}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), at
    else:
        assert one == two, at


def uncut(words, exp, tmp_path):
    """The result of a run that nothing interrupts, in a folder of its own."""
    here = os.getcwd()
    (tmp_path / "uncut").mkdir()
    os.chdir(tmp_path / "uncut")
    try:
        assert train(words) == 0
        return last(exp), last(exp, "model-3.pth"), metrics(exp)
    finally:
        os.chdir(here)
