"""What a training run says: a line when it starts, and a bar, or a line an epoch where no person watches."""

from __future__ import annotations

import math
import sys
import time

from torch import nn
from tqdm import tqdm

import distributed
from dataset import registry
from diffusion import SimpleObjective
from experiment.compiling import half_of
from models import parameter_count

NAMES = 6  # of labels, in a line
NOISE = -4.0  # log-SNR that is as good as noise: of the variance 1.8 % is the image's
PATIENCE = 1.0  # seconds between two looks at the loss: each waits for the device


def start_line(name: str, model: nn.Module, config, device, data: str) -> str:
    """One line: the experiment, its parameters, where and in what arithmetic it is trained, and on what."""
    half = half_of(config.precision, device)
    arithmetic = "fp32" if half is None else str(half).removeprefix("torch.")
    return f"{name}: {parameter_count(model):,} parameters on {device} in {arithmetic}; {data}"


def unit_of(spec) -> str:
    """Of a progress bar."""
    return "img" if spec.kind == "image" else "point"


def data_line(training: registry.Dataset, validation: registry.Dataset) -> str:
    """How many images of which shape, and which labels were found."""
    shape = "x".join(map(str, training.shape))
    kind = "points" if training.spec.kind == "points" else "images"
    names = training.label_names
    some = ", ".join(names[:NAMES]) + (", ..." if len(names) > NAMES else "")
    what = {"class": "classes"}.get(training.spec.labels, training.spec.labels)
    labels = f"{len(names)} {what} ({some})" if training.labels is not None and names else "no labels"
    return f"{len(training):,} training and {len(validation):,} validation {kind} of {shape}, {labels}"


def say_if_signal_remains(model: nn.Module) -> None:
    """A line where samplers begin at a level that is not yet noise, and begin with noise all the same."""
    if not isinstance(getattr(model, "objective", None), SimpleObjective):
        return  # --loss itd takes its levels from the data's spectrum
    last = model.schedule.logsnr_range[0]
    if last > NOISE:
        distributed.say(f"note: samples start from pure noise, and the schedule ends at log-SNR {last:.1f}, where "
                        f"{1 / (1 + math.exp(-last)):.0%} of the variance of images of variance 1 is their own: "
                        f"samples will be off. Give more --diffusion_steps, or a larger --betaT (--schedule linear)")


class Report:
    """The progress of a run of `total` steps, `done` of which are behind it, `batch` images (or what `unit` says) each.

    Where stderr is no terminal there is a line an epoch in place of the bar. Nothing of it goes into the log.
    """

    def __init__(self, total: int, done: int, batch: int, epoch_steps: int, unit: str):
        self.total, self.batch, self.epoch_steps, self.unit = total, batch, epoch_steps, unit
        self.watched = sys.stderr.isatty()
        self.lines = distributed.is_main() and not self.watched
        self.bar = tqdm(desc=self._epoch(done + 1), total=total * batch, initial=done * batch, unit=unit,
                        smoothing=0.05, mininterval=0.5, disable=not (distributed.is_main() and self.watched))
        self.images, self.begun, self.looked, self.terms = 0, time.monotonic(), time.monotonic(), ""

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def _epoch(self, step: int) -> str:
        """'epoch 3/20' of the 1-based step."""
        last = -(-self.total // self.epoch_steps)
        return f"epoch {min(-(-step // self.epoch_steps), last)}/{last}"

    def step(self, means) -> None:
        """After a step; `means` gives the terms so far, and is asked once a second."""
        self.images += self.batch
        self.bar.update(self.batch)
        if time.monotonic() - self.looked > PATIENCE:
            self.bar.set_postfix_str(_terms(means()))
            self.looked = time.monotonic()

    @property
    def speed(self) -> float:
        """Images a second of the epoch so far."""
        return self.images / max(time.monotonic() - self.begun, 1e-9)

    def doing(self, what: str, step: int) -> None:
        """What happens now beside training, after a step; of lines only one for what the end waits for."""
        self.bar.set_postfix_str(what)
        if self.lines and step == self.total:
            print(f"{self._epoch(step)}: {what}", file=sys.stderr, flush=True)

    def epoch(self, line: dict, speed: float) -> None:
        """The line of the log that an epoch ends with."""
        self.terms = _terms(line["train"])
        if self.lines:
            held_out = f"; validation: {_terms(line['val'])}" if line.get("val") else ""
            print(f"{self._epoch(line['step'])}, step {line['step']}/{self.total}: {_terms(line['train'])}{held_out}; "
                  f"{speed:.3g} {self.unit}/s", file=sys.stderr, flush=True)

    def again(self, done: int) -> None:
        """An epoch is over, with all that it ended with: the next one's time begins."""
        self.images, self.begun = 0, time.monotonic()
        self.bar.set_postfix_str(self.terms)
        if done < self.total:
            self.bar.set_description(self._epoch(done + 1), refresh=False)


def _terms(means: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in means.items())
