"""The latents whose I(x; z) is wanted, each with the interval that contains it: of a model, or of a file of codes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset import registry
from experiment.measuring import Sample, codes_of
from experiment.noisy_latent import NoisyLatent
from experiment.prepare import load_data
from information.entries import of_entries
from information.interval import Bracket, Normals, Rows, Symbols, bracket
from regularisers import kl_to_normal
from utils import CommandError, read_npz

MEASURED, FITTED, CHOSEN = 10_000, 10_000, 2_000  # rows at most: the measured ones, and those of the upper bounds


@dataclass(frozen=True)
class Latent:
    """One latent whose information about x is measured.

    z           [N, width] as a denoiser takes it
    rows        the same with q(z|x); None where z came with the data and how is not known
    tau, scale  the noise put on a deterministic code, and its unit
    """

    z: Tensor
    rows: Rows | None
    bracket: Bracket | None
    entries: list[Bracket] | None = None
    tau: float | None = None
    scale: NoisyLatent | None = None

    @property
    def name(self) -> str:
        return "z" if self.tau is None else f"z, tau {self.tau:g}"

    def part(self) -> dict:
        """What stands in the result file."""
        found = {"tau": self.tau, "bracket_nats": self.bracket.record() if self.bracket else None}
        if self.bracket and "rate" in self.bracket.bounds:
            rate = self.bracket.bounds["rate"]
            low, high = self.bracket.lower, self.bracket.upper
            ends = (rate.mean - high.mean - 2 * math.hypot(rate.se, high.se),
                    rate.mean - low.mean + 2 * math.hypot(rate.se, low.se))
            found |= {"rate_nats": rate.mean, "rate_se": rate.se, "marginal_kl_nats": [max(0.0, end) for end in ends]}
        if self.entries:
            found["per_dimension_nats"] = [
                {"lower": one.lower.mean, "lower_se": one.lower.se, "upper": one.upper.mean, "upper_se": one.upper.se,
                 "interval": one.ends} for one in self.entries]
        return found


@dataclass(frozen=True)
class Codes:
    """(mean, log-variance) of the codes of some rows; [N, d] each, log-variances None for a deterministic encoder.

    measured        what I is an average over
    fit, choose     other rows, or some of the measured ones: the upper bounds' densities, and the mixture's size
    tested          in that case, the rest of the measured rows
    """

    measured: tuple[Tensor, Tensor | None]
    fit: tuple[Tensor, Tensor | None]
    choose: tuple[Tensor, Tensor | None]
    chosen_on: str
    tested: slice | None = None

    @property
    def parts(self) -> tuple:
        return self.measured, self.fit, self.choose


def codes_of_model(trained, split: str) -> Codes:
    """Of the measured split, the training split and the validation split (of others where one of these is measured)."""
    found = []
    for name, limit in splits_for(split, trained.config.num_images).items():
        sample = Sample.of(trained, name)
        found.append(codes_of(trained.model, replace(sample, count=min(limit, len(sample.dataset)))))
    return Codes(*found, chosen_on=splits_of(split)[1])


def splits_of(split: str) -> tuple[str, str]:
    """Which splits the upper bounds are fitted to and chosen on, where this one is measured."""
    registry.check_split(split)
    return {"test": ("train", "val"), "val": ("train", "test"), "train": ("val", "test")}[split]


def splits_for(split: str, count: int | None) -> dict[str, int]:
    """split -> rows: the measured one's, and of those."""
    fit, choose = splits_of(split)
    return {split: count or MEASURED, fit: FITTED, choose: CHOSEN}


FEWEST = 300  # rows of a file: of 100 the least of three upper ends, taken over 30 rows, misses in 15 % of files


def codes_of_file(path: Path, count: int | None, seed: int) -> Codes:
    """Of one file of `all_a` [N, d] (and `all_logvar`), in random order: densities are fitted to three fifths.

    Raises CommandError for a file of another kind.
    """
    arrays = read_npz(path, "all_a")
    tables = [arrays["all_a"]] + ([arrays["all_logvar"]] if "all_logvar" in arrays else [])
    for table in tables:
        if table.ndim != 2 or table.dtype.kind not in "fiu" or table.shape != tables[0].shape or not table.shape[1]:
            raise CommandError(f"{path}: all_a (and all_logvar) must be tables of numbers [N, L]")
        if len(table) < FEWEST or not np.isfinite(table).all():
            raise CommandError(f"{path}: an interval needs {FEWEST} or more rows of finite codes")
    order = np.random.default_rng(seed).permutation(len(tables[0]))[: count or MEASURED]
    mean, *logvar = (torch.from_numpy(table[order]).double() for table in tables)
    logvar = logvar[0] if logvar else None

    def part(rows: slice) -> tuple[Tensor, Tensor | None]:
        return mean[rows], None if logvar is None else logvar[rows]

    fit, choose = len(order) * 6 // 10, len(order) * 7 // 10
    return Codes((mean, logvar), part(slice(fit)), part(slice(fit, choose)), "a tenth of the rows", slice(choose, None))


def given_latent(trained, sample: Sample) -> Latent:
    """The z that comes with the data, bracketed where the data set knows its channel."""
    dataset, config = sample.dataset, trained.config
    count = min(len(dataset), config.num_images or MEASURED)
    z = torch.from_numpy(dataset.given[:count]).to(trained.device)
    if dataset.channel is None:
        return Latent(z, None, None)
    rows, fit, choose = (
        channel_rows(load_data(config, name), limit)
        for name, limit in splits_for(sample.split, config.num_images).items())
    found = bracket(rows, fit, choose, chosen_on=splits_of(sample.split)[1], seed=config.r_seed)
    return Latent(z, rows, found)


def channel_rows(dataset, limit: int) -> Rows:
    """The z of the first rows with what the data set knows of it."""
    if dataset.channel.normal is not None:
        return Normals(*(torch.from_numpy(part[:limit]).double() for part in dataset.channel.normal))
    sent, came, sizes, error, independent = dataset.channel.classes
    return Symbols(torch.from_numpy(sent[:limit]), torch.from_numpy(came[:limit]), sizes, error, independent)


def latents_of(codes: Codes, taus: tuple[float, ...], seed: int, regular: bool) -> list[Latent]:
    """A stochastic encoder's z as it is; a deterministic one's with the noise of each tau, the least first.

    regular     is the prior N(0, I), so that the rate is known?
    """
    scale = NoisyLatent.of(codes.fit[0])
    if codes.measured[1] is not None:
        return [_latent(codes, [part[1] for part in codes.parts], seed, regular)]
    found = []
    for tau in sorted(taus):
        level = 2 * (math.log(tau) + scale.deviation.double().log())
        latent = _latent(codes, [level] * 3, seed, False)
        found.append(replace(latent, tau=tau, scale=scale))
    return found


def _latent(codes: Codes, logvars: list[Tensor], seed: int, regular: bool) -> Latent:
    measured, fit, choose = (
        Normals.draw(mean, logvar, seed, stream)
        for (mean, _), logvar, stream in zip(codes.parts, logvars, ("z", "fit", "choose"), strict=True))
    tested = None if codes.tested is None else measured.rows(codes.tested)
    rate = kl_to_normal(measured.mean, measured.logvar) if regular else None
    found = bracket(measured, fit, choose, tested=tested, rate=rate, chosen_on=codes.chosen_on, seed=seed)
    return Latent(measured.z, measured, found, of_entries(measured, fit if tested is None else None))
