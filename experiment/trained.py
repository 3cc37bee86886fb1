"""A trained model, opened by a command line or by its folder, and what can be asked of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import config as config_module
import distributed
from config import MODELS, Command, Config
from dataset import registry
from experiment.autoencoder import Autoencoder
from experiment.checkpoint import (
    checkpoints,
    chosen_checkpoint,
    load_model,
    named_checkpoint,
    note_newer_state,
    open_record,
    refuse_other_data,
    refuse_other_model,
    refuse_stale,
)
from experiment.pictures import as_batch, to_pictures
from experiment.prepare import draw_given, load_data, pick_device
from information.lattice import Lattice, lattice_of
from models import LatentDiffusion
from rng import Rng
from sampling import generate, prior_of
from utils import CommandError, check_writable, file_hash

if TYPE_CHECKING:
    from experiment.measuring import LogProb

PART = 256  # images that a network sees at once


@dataclass(repr=False)
class Trained:
    """A model from a checkpoint (EMA weights, evaluation mode) with this call's config."""

    config: Config
    by_hand: frozenset[str]
    model: nn.Module
    path: Path
    epoch: int
    step: int
    device: torch.device
    mode: str = ""
    stored: Config | None = None  # as it was trained; None: the same
    data: str | None = None  # the identity of the data set that it was trained on; None: not known
    apart: str = ""  # folder below results/EXP for what is no checkpoint of the experiment's

    @functools.cached_property
    def hash(self) -> str:
        """Of the checkpoint's file."""
        return file_hash(self.path)

    def provenance(self) -> dict:
        """What a result file says of the model behind its numbers: `config` as it was trained, `call` as it was used.
        """
        return {"checkpoint": str(self.path), "checkpoint_hash": self.hash, "epoch": self.epoch, "step": self.step,
                "ema": True, "data": self.data, "config": config_module.to_dict(self.stored or self.config),
                "call": config_module.call_of(Command(self.mode, self.config, self.by_hand))}

    def load_data(self, split: str) -> registry.Dataset:
        """A named split of the model's data set. Raises CommandError where it is not the set it was trained on."""
        dataset = load_data(self.config, split)
        refuse_other_data(self.data, dataset, self.config, self.path)
        return dataset

    @functools.cached_property
    def _train(self) -> registry.Dataset:
        return self.load_data("train")

    @property
    def has_given_z(self) -> bool:
        """Whether z comes with the data, and no encoder makes it."""
        return self.config.has_latent and self.model.encoder is None

    def prior(self, rng: Rng) -> Tensor | None:
        """z of numbered samples, [B, a_dim]: from the model's prior, or of training rows drawn at random where z comes
        with the data; None for plain diffusion."""
        if self.has_given_z:
            return draw_given(self._train, rng)
        return prior_of(self.model, rng)

    def results(self, name: str) -> Path:
        """The result file of that name. Raises CommandError where it cannot be written, or holds another model's."""
        path = config_module.folder(self.config, "results") / self.apart / name
        check_writable(path.parent)
        refuse_other_model(path, self.path)
        return path

    # -----------------------------------------------------------------------------------------------------------------
    # From Python. Images come in as `batch` takes them, and go out as float32 tensors [B, C, H, W] in [-1, 1].

    @property
    def spec(self) -> registry.Spec:
        """What the data set is."""
        return registry.SPECS[self.config.dataset]

    def batch(self, images) -> Tensor:
        """Anybody's images as the model sees them: float32 [B, *shape] on the model's device.

        images  one or a list of: paths, PIL images, arrays or tensors of uint8, or of floats in [-1, 1], of any size;
                of points, floats [B, n]. `pictures.as_batch` has the rules.

        >>> model.batch("seven.png").shape
        torch.Size([1, 1, 8, 8])
        """
        return as_batch(images, self.spec, tuple(self.model.shape)).to(self.device)

    def pictures(self, x: Tensor) -> list:
        """Images [B, C, H, W] in [-1, 1] as PIL images.

        >>> model.pictures(model.sample(2, steps=4))[1].size
        (8, 8)
        """
        return to_pictures(x)

    def autoencoder(self, steps: int | None = None) -> Autoencoder:
        """x -> (z, x_T) -> x, in --sample_steps or so many steps of the sampler."""
        steps = self.config.sample_steps if steps is None else steps
        return Autoencoder(self.model, steps, self.config.spacing or "time", self.config.inversion)

    def codes(self, z, count: int | None = None) -> Tensor:
        """Anybody's latents as the model takes them: float32 [B, a_dim] on its device; of one row, `count` times that.

        Raises CommandError for another shape, and for plain diffusion, which has none.
        """
        if not self.config.has_latent:
            raise CommandError(f"{self.path} is plain diffusion, which has no z")
        z = torch.as_tensor(z, dtype=torch.float32, device=self.device)
        rows = (count, 1) if count else (len(z),) if z.dim() else ()
        if z.dim() != 2 or z.shape[1] != self.config.a_dim or len(z) not in rows:
            raise CommandError(f"z is [{count or 'B'}, {self.config.a_dim}], not {list(z.shape)}")
        return z.expand(count or len(z), -1)

    def __repr__(self) -> str:
        return f"<{self.config.model} model of {self.config.dataset}, epoch {self.epoch}: {self.path}>"

    @torch.no_grad()
    def encode(self, images) -> Tensor:
        """z of images, the mean of q(z|x), as every mode uses it: [B, a_dim].

        Raises CommandError for plain diffusion, and for a data set that brings its own z.

        >>> model.encode(["seven.png", "seven.png"]).shape
        torch.Size([2, 2])
        """
        if getattr(self.model, "encoder", None) is None:
            raise CommandError(f"{self.path} has no encoder: --model diff or vae has, where the data brings no z")
        return self._in_parts(self.model.encode, self.batch(images))

    def invert(self, images, z: Tensor | None = None, steps: int | None = None) -> Tensor:
        """x_T of images by inverting the deterministic sampler: [B, *shape].

        z       [B, a_dim] that they are conditioned on, or one [1, a_dim] for all; by default their own
        steps   50 by default
        Raises CommandError for a VAE, which has no x_T.

        >>> model.invert("seven.png", steps=4).shape
        torch.Size([1, 1, 8, 8])
        """
        coder = self.autoencoder(steps)
        if not coder.has_noise:
            raise CommandError(f"{self.path} is a VAE: it has z, and no x_T")
        x = self.batch(images)
        if z is None and coder.has_z:
            z = self.encode(x)
        return self._in_parts(coder.invert, x, None if z is None else self.codes(z, len(x)))

    def decode(self, z: Tensor | None = None, x_T: Tensor | None = None, steps: int | None = None,
               seed: int = 0) -> Tensor:
        """Images of latents by the deterministic sampler: [B, *shape].

        z       [B, a_dim]; None for plain diffusion, or the branch without z
        x_T     [B, *shape], or one [1, *shape] for all; by default drawn from the seed, row i the same for every z

        >>> model.decode(torch.zeros(3, 2), steps=4).shape
        torch.Size([3, 1, 8, 8])
        """
        coder, z = self.autoencoder(steps), None if z is None else self.codes(z)
        count = len(z) if z is not None else len(x_T) if x_T is not None else 1
        if coder.has_noise:
            if x_T is None:
                rng = Rng(seed, torch.arange(count, device=self.device))
                x_T = rng.at(0).normal("x_T", *self.model.shape)
            x_T = torch.as_tensor(x_T, dtype=torch.float32, device=self.device).expand(count, *self.model.shape)
        return _drawn(self._in_parts(coder.decode, z, x_T))

    def sample(self, n: int, z: Tensor | None = None, steps: int | None = None, seed: int = 0,
               sampler: str = Config.sampler) -> Tensor:
        """n samples [n, *shape]: those that `--mode eval` draws with these --sampler, --sample_steps and --r_seed.

        z       [n, a_dim] to condition on, or one [1, a_dim] for all; by default drawn (`prior`)

        >>> torch.equal(model.sample(3, steps=4)[:2], model.sample(2, steps=4))
        True
        """
        if n < 1:
            raise CommandError(f"{n} samples: draw one at least")
        z = None if z is None else self.codes(z, n)

        def draw(rows: Tensor) -> Tensor:
            rng = Rng(seed, rows)
            own = self.prior(rng) if z is None else z[rows]
            return generate(self.model, rng, own, sampler=sampler, steps=steps, spacing=self.config.spacing)

        return _drawn(self._in_parts(draw, torch.arange(n, device=self.device)))

    def reconstruct(self, images, steps: int | None = None) -> Tensor:
        """Images [B, *shape] given back from their own z and x_T.

        >>> model.reconstruct("seven.png", steps=4).shape
        torch.Size([1, 1, 8, 8])
        """
        x, coder = self.batch(images), self.autoencoder(steps)
        return _drawn(self._in_parts(lambda part: coder.decode(*coder.encode(part)), x))

    def interpolate(self, a, b, points: int = 10, steps: int | None = None) -> Tensor:
        """Images [points, *shape] from image a to image b: z on the line, x_T on the great circle between theirs.

        The ends are the two images' own reconstructions.

        >>> model.interpolate("seven.png", torch.zeros(1, 8, 8), points=5, steps=4).shape
        torch.Size([5, 1, 8, 8])
        """
        coder, (first, second) = self.autoencoder(steps), (self.batch(a), self.batch(b))
        if len(first) != 1 or len(second) != 1 or points < 2:
            raise CommandError(f"interpolation is between two images, at two points or more; not between {len(first)} "
                               f"and {len(second)}, at {points}")
        return _drawn(coder.between(first, second, points))

    @property
    def lattice(self) -> Lattice | None:
        """The values that a pixel can take; None for points."""
        own = self.config.input_size in (None, self.spec.size)
        return lattice_of(self.spec.levels if own or self.spec.levels is None else 256)

    def log_prob(self, images, npoints: int = 100, seed: int = 0) -> LogProb:
        """log p(x) of images in nats, with standard errors and what kind of likelihood it is (`measuring.LogProb`).

        npoints     log-SNR evaluations an image
        Raises CommandError for a VAE, and for a model that knows p(x|z) only.

        >>> found = model.log_prob("seven.png", npoints=4)
        >>> found.kind, found.nats.shape, found.se.shape
        ('dequantised', torch.Size([1]), torch.Size([1]))
        """
        from experiment.measuring import log_prob

        return log_prob(self, self.batch(images), npoints, seed)

    def information(self, taus: tuple[float, ...] = (1.0, 2.0, 4.0), split: str = "test", seed: int = 0) -> list[dict]:
        """Intervals that contain I(x; z), in nats, as `--mode mutual_info` prints them first; from the codes alone.

        taus    deviations of the noise on a deterministic code, in units of its own; a stochastic encoder has its own
        Returns a record a tau: 'tau', 'bracket_nats' (lower, upper, their standard errors, saturated, log_n ...).

        >>> (found,) = model.information(taus=(2.0,))
        >>> found["bracket_nats"]["lower"] < found["bracket_nats"]["log_n"]
        True
        """
        from experiment.intervals import codes_of_model, latents_of

        codes = codes_of_model(self, split)
        return [latent.part() for latent in latents_of(codes, taus, seed, self.config.prior == "regular")]

    @staticmethod
    def _in_parts(function: Callable[..., Tensor], *rows: Tensor | None) -> Tensor:
        """function(*rows) on parts of at most PART rows, put together."""
        count = next(len(part) for part in rows if part is not None)
        parts = [function(*(None if part is None else part[k : k + PART] for part in rows))
                 for k in range(0, count, PART)]
        return torch.cat(parts)


def _drawn(x: Tensor) -> Tensor:
    """Images cut to the range of pixels, which a sampler may overstep; points as they are."""
    return x.clamp(-1, 1) if x.dim() == 4 else x


def load(path: str | Path, device: str | None = None) -> Trained:
    """A trained model, ready to be asked: from its folder (models/EXP, the newest checkpoint) or a checkpoint's file.

    device  cpu, cuda ...; the GPU where there is one by default
    Raises CommandError, in one line, where there is none, or it is broken.
    """
    trained = open_trained(Command("", replace(Config(), device=device), frozenset()), named_checkpoint(path))
    trained.config = replace(trained.stored, device=device)
    return trained


def open_trained(command: Command, path: Path | None = None, kinds: tuple[str, ...] = MODELS) -> Trained:
    """The trained model that a command line names, or the one at `path`, of one of the kinds.

    Raises CommandError where it is absent, broken, of another kind, or contradicted by a flag typed by hand.
    """
    mode, config, by_hand = command
    found = path is None
    if found:
        path = chosen_checkpoint(command)
    device = pick_device(config.device)
    record, stored = open_record(path, kinds)
    name = config.experiment
    config = config_module.trained(config, by_hand, stored, path)
    if found and config.experiment != name:
        raise CommandError(f"{path} holds a model of the experiment {config.experiment}: this folder is not its own")
    distributed.say(f"model: {path} (epoch {record['epoch']})")
    if found and "epochs" not in by_hand and not config.best and distributed.is_main():
        note_newer_state(path, record["step"])
    trained = Trained(config, by_hand, load_model(record, config, device, path), path, record["epoch"], record["step"],
                      device, mode, stored, record.get("data"))
    _ = trained.hash  # of the file as it is now
    return trained


def open_latent(trained: Trained) -> tuple[LatentDiffusion, Path]:
    """The latent diffusion that belongs to a trained model, the newest of models/EXP_latent, and its file.

    Raises CommandError where it was fitted to the codes of another checkpoint.
    """
    folder = config_module.folder(trained.config, "models")
    folder = folder.with_name(folder.name + "_latent")
    there = checkpoints(folder)
    if not there:
        raise CommandError(f"no checkpoint in {folder}: run --mode train_latent_ddim with the same flags first")
    distributed.say(f"latent diffusion: {there[0]}")
    record, _ = open_record(there[0], ("latent",))
    refuse_stale(record.get("codes_of"), there[0], trained.path, "run --mode train_latent_ddim --no-resume")
    return load_model(record, trained.config, trained.device, there[0]), there[0]
