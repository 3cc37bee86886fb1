"""The training loop of every model, the latent diffusion included: when something is updated, logged or saved.

A run is a function of its config: batches, noise and dropout come from (seed, step, place in the batch), so a run that
was cut and started again ends bit for bit where the uncut one ends. `metrics.jsonl` therefore holds no timings.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import config as config_module
import distributed
import plots
from config import Command, Config
from dataset import registry
from experiment import (
    basis_file,
    build_fresh,
    checkpoints,
    describe_network,
    fit_gaussian,
    half_of,
    is_plain,
    load_data,
    pick_device,
    without_basis,
)
from experiment.progress import Report, data_line, say_if_signal_remains, start_line, unit_of
from experiment.resuming import start_or_resume
from experiment.validation import scorer, show_samples, validation
from models import LatentDiffusion, schedule_for
from rng import Rng, seed_dropout
from utils import (
    UNREADABLE,
    CommandError,
    RunError,
    atomic,
    check_writable,
    first_line,
    locked,
    remove_partial,
    save_checkpoint,
)

# ---------------------------------------------------------------------------------------------------------------------
# One step


def cosine_rate(step: int, total: int, warmup: int) -> float:
    """From 1 to 2 over the first `warmup` steps, then a cosine to 0 at `total`."""
    if step < warmup:
        return 1 + step / warmup
    return 1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))


RATES = {"cosine": cosine_rate, "constant": lambda step, total, warmup: 1.0}


def learning_rate(step: int, total: int, warmup: int, config: Config) -> float:
    return config.learning_rate * RATES[config.lr_schedule](step, total, warmup)


class _InMemoryOrder:
    """An optimiser's base: its update goes over weights as they lie, and over gradients in the same order.

    On a CPU torch's fused Adam copies weights that lie channels last, which takes longer than the update, and pairs
    weights with the wrong gradients, without a word, where these lie in another order.
    """

    def _init_group(self, group, weights, gradients, *moments_and_steps):
        found = super()._init_group(group, weights, gradients, *moments_and_steps)
        turned = [_lies_channels_last(weight) for weight in weights]
        for tensors in filter(None, (weights, gradients, *moments_and_steps)):  # of some kinds there are none
            tensors[:] = [value.permute(0, 2, 3, 1) if turn and value.dim() == 4 else value
                          for value, turn in zip(tensors, turned, strict=True)]
        gradients[:] = [value.contiguous() for value in gradients]  # a copy only where they lie otherwise
        return found


def _lies_channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


class _AdamW(_InMemoryOrder, torch.optim.AdamW):
    pass


class _Adam(_InMemoryOrder, torch.optim.Adam):
    pass


OPTIMIZERS = {"adamw": _AdamW, "adam": _Adam}


class Stepper:
    """Weights, their average, and the optimiser: one update at a time.

    The average's decay warms up, min(decay, (1 + t)/(10 + t)), so that a short run's average forgets its start.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device):
        model.lower = half_of(config.precision, device)
        self.model, self.ema = model.train(), copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.device = config.ema_decay, device
        self.weights, self.averages = list(model.parameters()), list(self.ema.parameters())  # once: the walk takes long
        decay = {"weight_decay": 1e-5} if config.optimizer == "adamw" else {}
        self.optimizer = OPTIMIZERS[config.optimizer](self.weights, lr=config.learning_rate, fused=True, **decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=model.lower == torch.float16)
        self.parallel = model
        distributed.barrier()  # data takes one process longer to read than another
        if distributed.world() > 1:
            self.parallel = DistributedDataParallel(model, [device] if device.type == "cuda" else None)
        self.step = 0

    def update(self, x: Tensor, rng: Rng, given: Tensor | None, progress: float, rate: float) -> dict[str, Tensor]:
        """One optimiser step on a batch. Returns the loss terms' means [], on the device: nothing waits for them."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.parallel(x, rng, given, progress)
        self.scaler.scale(terms["loss"]).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
        return {name: term.detach().mean() for name, term in terms.items()}

    def state(self) -> dict:
        """What going on needs beside the averaged weights and the step."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict()}

    def load(self, state: dict) -> None:
        """Take up a state. Raises ValueError or the like where it is not one of this model and optimiser."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        own = self.optimizer.state_dict()
        moments = state["optimizer"]["state"]
        if not isinstance(moments, dict):
            raise ValueError("no moments")
        for number, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            for name, shape in shapes.items() if state["step"] else ():  # before the first step there are none
                value = dict(moments[number])[name]
                if not is_plain(value) or value.shape != shape or not value.isfinite().all():
                    raise ValueError(f"{name} of parameter {number}")
        # Rates and decays are the config's own.
        self.optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})
        for parameter, kept in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq") if kept else ():  # in memory as the weights are
                kept[name] = torch.empty_like(parameter).copy_(kept[name])
        if self.scaler.is_enabled() and not all(
                type(state["scaler"][name]) is type(value) for name, value in self.scaler.state_dict().items()):
            raise ValueError("the scaler's state")
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


class Interrupts:
    """SIGTERM and Ctrl-C, noted and answered between two steps; a second one ends the process at once."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind, *_) -> None:
        failed = kind is not None and distributed.world() > 1
        for number, handler in self._before.items():  # the launcher's SIGTERM waits until it is said what happened
            signal.signal(number, signal.SIG_IGN if failed and number == signal.SIGTERM else handler)
        distributed.signalled = None

    def _note(self, number: int, _frame) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal, distributed.signalled = number, time.monotonic()


# ---------------------------------------------------------------------------------------------------------------------
# The run


class Run:
    """One training run in one folder: its model, its data, its log and its checkpoints."""

    def __init__(self, stepper: Stepper, dataset: registry.Dataset, config: Config, folder: Path, logs: Path,
                 record: dict, validate: Callable[[nn.Module, float], dict] | None = None,
                 show: Callable[[nn.Module, int], Path] | None = None,
                 score: Callable[[nn.Module], dict] | None = None):
        self.stepper, self.dataset, self.config, self.folder = stepper, dataset, config, folder
        self.record, self.basis = without_basis(record)  # a large one is in one file for all checkpoints
        self.metrics, self.validate, self.show = logs / "metrics.jsonl", validate, show
        self.score, self.best = score, math.inf  # FID of samples, and the least of it so far
        self.device, self.seed = stepper.device, config.r_seed
        self.batch = min(config.batch_size, len(dataset))
        if self.batch % distributed.world():
            raise CommandError(f"--batch_size {self.batch} does not divide among {distributed.world()} processes")
        self.epoch_steps = len(dataset) // self.batch
        self.total = config.epochs * self.epoch_steps
        if config.max_steps:
            self.total = min(self.total, config.max_steps)
        self.sums: dict[str, Tensor] = {}
        self.board = None

    def go(self) -> None:
        """Train to the end.

        Raises, the state saved, Interrupted on a signal, CommandError for an image that cannot be read and RunError
        for a reader that was killed, in its own process, and Interrupted in the others; RunError on a diverging loss.
        """
        if self.config.tb_logger and distributed.is_main():
            self._open_board()
        unit = unit_of(self.dataset.spec)
        self.report = Report(self.total, self.stepper.step, self.batch, self.epoch_steps, unit)
        saved, ended = time.monotonic(), False
        with self.report, Interrupts() as interrupts:
            batches = self._batches()
            while True:
                batch, failure = _next(batches)
                own_due = distributed.is_main() and time.monotonic() - saved > 60 * self.config.save_minutes
                # all processes save and stop after the same step: a signal's number, a failure, a file that is due
                stop, failed, due = distributed.agree(interrupts.signal or 0, failure is not None, own_due)
                if ended or (self.stepper.step and (stop or failed or due)):
                    self.save("last.pth")
                    saved = time.monotonic()
                if ended:
                    self.report.again(self.stepper.step)
                if failed:
                    self._give_up(failure)
                if stop:
                    raise Interrupted(f"stopped by {signal.Signals(stop).name}", 128 + stop)
                if batch is None:
                    return
                self._step(*batch)
                self.report.step(self._means)
                ended = self.stepper.step % self.epoch_steps == 0 or self.stepper.step == self.total
                if ended:
                    self._end_epoch()

    def _give_up(self, failure: Exception | None) -> None:
        """Raise where a batch could not be read: what went wrong, or in the other processes that one has stopped."""
        if self.stepper.step:
            distributed.say(f"saved: {self.folder}/last.pth, step {self.stepper.step}")
        raise failure or Interrupted("stopped, since another process could not read its batch", 1)

    def _batches(self) -> Iterator[tuple[Rng, Tensor, Tensor | None]]:
        """This process's rows of every remaining batch: (noise, x [b, *shape] on the device, given z or None)."""
        own = self.batch // distributed.world()
        place = torch.arange(distributed.rank() * own, (distributed.rank() + 1) * own)
        start = self.stepper.step

        def lists():
            for step in range(start, self.total):
                epoch, within = divmod(step, self.epoch_steps)
                if within == 0 or step == start:
                    order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
                yield order[within * self.batch + place.numpy()].tolist()

        given, spec = self.dataset.given, self.dataset.spec
        flips = spec.kind == "image" and (spec.flip if self.config.flip is None else self.config.flip)
        stream = registry.stream(self.dataset, _Sized(lists, self.total - start), self.device, self.config.num_workers)
        place = place.to(self.device)
        for step, (indices, raw) in enumerate(stream, start):
            rng = Rng(self.seed, place, step)
            flip = rng.uniform("flip") < 0.5 if flips else None
            x = registry.to_float(raw, self.dataset.levels, flip)
            z = None if given is None else torch.from_numpy(given[indices.numpy()]).to(self.device)
            yield rng, x, z

    def _step(self, rng: Rng, x: Tensor, given: Tensor | None) -> None:
        step = self.stepper.step
        seed_dropout(self.seed, step, distributed.rank())
        rate = learning_rate(step, self.total, self.epoch_steps, self.config)
        terms = self.stepper.update(x, rng, given, step / self.total, rate)
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.double()
        self.sums["steps"] = self.sums.get("steps", 0) + 1

    def _means(self) -> dict[str, float]:
        """The epoch's mean of every term so far. Raises RunError where one is not a number."""
        count = self.sums["steps"]
        means = {name: (value / count).item() for name, value in self.sums.items() if name != "steps"}
        if not all(map(math.isfinite, means.values())):
            raise self._diverged(f"the loss is ({means})")
        return means

    def _diverged(self, what: str) -> RunError:
        return RunError(f"{what} no longer finite near step {self.stepper.step}; the checkpoints in {self.folder} are "
                        f"from before (try a lower --learning_rate)")

    def _end_epoch(self) -> None:
        """Log the epoch, validate, draw and keep a checkpoint where they are due."""
        epoch = math.ceil(self.stepper.step / self.epoch_steps)
        self.sums = {name: distributed.mean(v) if isinstance(v, Tensor) else v for name, v in self.sums.items()}
        means, speed = self._means(), self.report.speed
        self.sums = {}
        last = self.stepper.step == self.total
        score = self._scored() if self.score and (epoch % self.config.fid_epochs == 0 or last) else {}
        if distributed.is_main():  # the others wait at the barrier, without a limit
            line = {"epoch": epoch, "step": self.stepper.step, "unit": self.record["unit"], "train": means}
            if self.validate:
                self.report.doing("validating", self.stepper.step)
                line |= self.validate(self.stepper.ema, (self.stepper.step - 1) / self.total)
            line |= score
            self._log(line)
            self.report.epoch(line, speed)
            self._to_board(self._show_speed, speed)
            if self.show and (epoch % (self.config.display_epochs or self.config.save_epochs) == 0 or last):
                self.report.doing("drawing samples", self.stepper.step)
                self._to_board(self._show_picture, self.show(self.stepper.ema, epoch))
        distributed.barrier()
        if epoch % self.config.save_epochs == 0 or last:
            self.save(f"model-{epoch}.pth")
            if self.config.keep and distributed.is_main():
                for old in checkpoints(self.folder)[self.config.keep :]:
                    old.unlink(missing_ok=True)

    def _scored(self) -> dict:
        """The averaged weights' score; where it is the best so far, they are kept as best.pth."""
        self.report.doing("measuring the FID of samples", self.stepper.step)
        score = self.score(self.stepper.ema)
        if score["fid"] < self.best:
            self.best = score["fid"]
            self.save("best.pth")
        return score

    def _open_board(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _quiet_on_disk_errors  # of its thread; they come to the caller too
        with self._board_errors():
            self.board = SummaryWriter(str(self.metrics.parent), purge_step=self.stepper.step + 1)

    def _log(self, line: dict) -> None:
        try:
            self.metrics.parent.mkdir(parents=True, exist_ok=True)
            with open(self.metrics, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise CommandError(f"cannot write {self.metrics}: {error.strerror or error}") from error
        self._to_board(self._show_line, line)

    def _to_board(self, show: Callable, value) -> None:
        """Show something with --tb_logger."""
        if self.board is not None:
            with self._board_errors():
                show(value)
                self.board.flush()

    @contextlib.contextmanager
    def _board_errors(self):
        try:
            yield
        except OSError as error:
            raise CommandError(f"cannot write TensorBoard's events in {self.metrics.parent}: "
                               f"{error.strerror or error}") from None

    def _show_speed(self, speed: float) -> None:
        step = self.stepper.step
        self.board.add_scalar("train/learning rate", learning_rate(step - 1, self.total, self.epoch_steps, self.config),
                              step)
        self.board.add_scalar("train/images per second", speed, step)

    def _show_picture(self, path: Path | None) -> None:
        if path is not None:
            self.board.add_image("samples", plots.read_png(path), self.stepper.step, dataformats="HWC")

    def _show_line(self, line: dict) -> None:
        for part in ("train", "val"):
            for name, value in line.get(part, {}).items():
                self.board.add_scalar(f"{part}/{name}", value, line["step"])
        if "fid" in line:
            self.board.add_scalar("val/fid", line["fid"], line["step"])
        if "curve" in line:
            self.board.add_figure("val/error curve", plots.error_curve(line["curve"]), line["step"])

    def save(self, name: str) -> None:
        """Write a checkpoint: everything that going on needs. A diverged state is refused, and replaces nothing."""
        self.sums = {name: distributed.mean(v) if isinstance(v, Tensor) else v for name, v in self.sums.items()}
        if self.sums:
            self._means()
        if not torch.stack(torch._foreach_norm(self.stepper.weights)).isfinite().all():
            raise self._diverged("the weights are")
        if distributed.is_main():
            step = self.stepper.step
            record = {**self.record, "ema": self.stepper.ema.state_dict(), "step": step, "best": self.best,
                      "epoch": math.ceil(step / self.epoch_steps), "config": config_module.to_dict(self.config)}
            if self.basis is not None and not (place := basis_file(self.folder, record["gaussian"]["basis"])).exists():
                save_checkpoint(place, {"kind": "gaussian", "basis": self.basis})
            save_checkpoint(self.folder / name, record, {**self.stepper.state(), "sums": self.sums})
        distributed.barrier()  # a slow disk is waited for

    def resume(self, record: dict, path: Path) -> None:
        """Take up the state of the checkpoint at `path`, and cut the log back to it. Raises CommandError for no state.
        """
        try:
            self.stepper.load(record)
        except UNREADABLE as error:
            raise CommandError(f"{path} holds no state that training can go on from ({first_line(error)}): move it "
                               f"away, or give --no-resume to replace what is in {self.folder}") from None
        self.sums = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in record["sums"].items()}
        self.best = record.get("best", math.inf)
        if self.metrics.exists() and distributed.is_main():
            lines = self.metrics.read_bytes().splitlines(True)
            kept = [line.rstrip(b"\n") + b"\n" for line in lines if _step_of(line) <= self.stepper.step]
            if kept != lines:
                with atomic(self.metrics) as temporary:
                    temporary.write_bytes(b"".join(kept))


def _quiet_on_disk_errors(failure) -> None:
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


class Interrupted(Exception):
    """The run was asked to stop, by a signal or by another process, and has saved its state."""

    def __init__(self, why: str, status: int):
        super().__init__(f"{why}; the same command goes on from here")
        self.status = status


def _next(batches: Iterator) -> tuple[tuple | None, Exception | None]:
    """The next batch, None after the last, and what kept it from being read: a broken picture, a killed reader."""
    try:
        return next(batches, None), None
    except (CommandError, RunError, RuntimeError) as error:
        return None, error


class _Sized:
    """An iterable that knows its length, as a DataLoader's sampler must."""

    def __init__(self, make: Callable[[], Iterator], length: int):
        self.make, self.length = make, length

    def __iter__(self) -> Iterator:
        return self.make()

    def __len__(self) -> int:
        return self.length


def _step_of(line: bytes) -> float:
    """The step that a log line ends at; infinite for half a line, or what is no line of a log."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf


# ---------------------------------------------------------------------------------------------------------------------
# Starting, going on


def finish(run: Run, config: Config, pictures: Path, start: str, by_hand: frozenset[str] = frozenset()) -> None:
    """Say the line `start`, train, then draw the curves below `pictures`.

    Draws them for a finished run too, if it was stopped before they were drawn.
    """
    curve, main = pictures / "train" / f"curve.{config.format}", distributed.is_main()
    if main:
        for folder in (run.folder, run.metrics.parent, pictures):
            check_writable(folder)
        if os.path.lexists(run.metrics) and not run.metrics.is_file():
            raise CommandError(f"{run.metrics} is not a file: move it away")
    with locked(run.folder, run.metrics.parent) if main else contextlib.nullcontext():
        left = start_or_resume(run, config, pictures, by_hand)
        if main:
            remove_partial(pictures)
        if left:
            distributed.say(start)
            run.go()
            distributed.say(f"trained: {run.folder}/model-{math.ceil(run.total / run.epoch_steps)}.pth, "
                            f"log {run.metrics}")
        if main and run.metrics.is_file() and (left or _older(curve, run.metrics)):
            plots.training_curve(run.metrics, curve)


def _older(path: Path, than: Path) -> bool:
    """Whether a file is absent, or older than another one."""
    return not path.is_file() or path.stat().st_mtime_ns < than.stat().st_mtime_ns


def train(command: Command) -> None:
    """Mode `train`: fit the model to the data set's training split. Leaves checkpoints, a log, grids and curves."""
    config = command.config
    device = pick_device(config.device)
    dataset, held_out = load_data(config, "train"), load_data(config, "val")
    gaussian = fit_gaussian(dataset, config.num_workers)
    model = build_fresh(config, dataset.shape, gaussian, device, command.by_hand)
    if config.has_latent:
        model.latent.check_batch(min(config.batch_size, len(dataset)))
    stepper = Stepper(model, config, device)
    record = {"kind": config.model, "shape": list(dataset.shape), "rows": len(dataset), "gaussian": gaussian.state(),
              "levels": dataset.levels, "unit": model.unit, "network": describe_network(model),
              "data": registry.identity(dataset)}
    folders = [config_module.folder(config, root) for root in ("models", "logs", "imgs")]

    def validate(ema: nn.Module, progress: float) -> dict:
        return validation(ema, held_out, config, device, progress)

    def show(ema: nn.Module, epoch: int) -> Path:
        return show_samples(ema, dataset, config, folders[2] / "train" / f"epoch-{epoch:04d}.png", device)

    run = Run(stepper, dataset, config, folders[0], folders[1], record, validate, show, scorer(dataset, config, device))
    start = start_line(config.experiment, model, config, device, data_line(dataset, held_out))
    say_if_signal_remains(model)
    finish(run, config, folders[2], start, command.by_hand)


def latent_folders(config: Config) -> list[Path]:
    """Where the latent diffusion's checkpoints, log and pictures go."""
    owns = (config_module.folder(config, root) for root in ("models", "logs", "imgs"))
    return [own.with_name(f"{own.name}_latent") for own in owns]


def train_latent(config: Config, latents: Tensor, codes_of: str) -> None:
    """Mode `train_latent_ddim`: fit the latent diffusion to the training split's latents [N, a_dim].

    codes_of    the hash of the checkpoint that encoded them
    """
    device = pick_device(config.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.r_seed)
        model = LatentDiffusion(schedule_for(config), latents).to(device)
    spec = registry.Spec("latents", latents.shape[1], 1, None, "none", kind="points")
    dataset = registry.Dataset(spec, "train", np.arange(len(latents)), latents.numpy())
    folder, logs, pictures = latent_folders(config)
    record = {"kind": "latent", "rows": len(latents), "unit": "mean squared error", "codes_of": codes_of}
    run = Run(Stepper(model, config, device), dataset, config, folder, logs, record)
    data = f"{len(latents):,} codes of {latents.shape[1]} dimensions"
    finish(run, config, pictures, start_line(f"{config.experiment}, latent diffusion", model, config, device, data))
