"""What the modes `nll` and `mutual_info` share: rows of a split, the log-SNRs they are measured over, provenance."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import distributed
from dataset.registry import Dataset
from diffusion import Gaussian, LogSNRProposal
from experiment.prepare import batches_of
from experiment.trained import Trained
from information.lattice import Lattice, lattice_of
from information.likelihood import (
    Curve,
    Mean,
    average,
    conditional,
    continuous_nll,
    dequantise,
    error_curve,
    exact_float32,
    unconditional,
)
from models import InfoDiff
from regularisers import kl_to_normal
from rng import Rng
from utils import CommandError, versions

DEFAULT_IMAGES = 1_000
CAUTION = 0.01  # bits/dim that a Gaussian puts outside the range; from there on a table says so
BATCH = {"image": 256, "points": 8_192}  # samples evaluated at once


@dataclass(frozen=True)
class Sample:
    """The measured rows of one split."""

    dataset: Dataset
    split: str
    count: int
    device: torch.device
    workers: int

    @classmethod
    def of(cls, trained: Trained, split: str) -> Sample:
        dataset = trained.load_data(split)
        count = min(trained.config.num_images or DEFAULT_IMAGES, len(dataset))
        if count < distributed.world():
            raise CommandError(f"--num_images: {count} images are too few for {distributed.world()} processes")
        return cls(dataset, split, count, trained.device, trained.config.num_workers)

    def batches(self, rows: range | None = None):
        """(index [B], x [B, *shape]) on the device, of all rows or of some."""
        size = BATCH[self.dataset.spec.kind]
        for index, x in batches_of(self.dataset, size, self.device, rows or range(self.count), self.workers):
            yield index.to(self.device), x

    def own_batches(self):
        """The batches that this process measures; `Curve.concatenate` puts together what all of them find."""
        return self.batches(distributed.part(self.count))

    @property
    def lattice(self) -> Lattice | None:
        return lattice_of(self.dataset.levels)


def in_float32(model):
    """The model with every network in full precision."""
    model.lower = None
    return model


@contextlib.contextmanager
def full_precision(model, device_type: str):
    """Full precision inside, of the model's networks too: their own autocast would win over `exact_float32`."""
    lower = model.lower
    try:
        with exact_float32(device_type):
            yield in_float32(model)
    finally:
        model.lower = lower


def proposal_of(model, tuned: bool = True) -> LogSNRProposal:
    """Where the model's error is integrated: what it was trained on, within the range that fits the data's spectrum.

    tuned   False for a pretrained network as it came, which knows its own schedule and not --loss
    """
    trained = getattr(model.objective, "proposal", None)
    if trained is not None and tuned:
        return trained
    gaussian, seen = model.gaussian, (model.objective if tuned else model.schedule).logsnr_range
    wanted = gaussian.logsnr_range
    return LogSNRProposal(gaussian.loc, gaussian.scale, max(wanted[0], seen[0]), min(wanted[1], seen[1]))


def range_note(model, proposal: LogSNRProposal) -> str:
    low, high = model.gaussian.logsnr_range
    if proposal.low > low or proposal.high < high:
        return (f"the data's spectrum needs log-SNR {low:.1f} .. {high:.1f}; the model was trained on "
                f"{proposal.low:.1f} .. {proposal.high:.1f}, and outside it the Gaussian's error is used")
    return f"log-SNR {proposal.low:.1f} .. {proposal.high:.1f}; outside it the Gaussian's error is used"


def reference_of(gaussian: Gaussian) -> dict:
    """How the Gaussian reference was estimated, for a result file; `note` is None where there were rows enough."""
    dimensions, covariance = len(gaussian.mean), "diagonal" if gaussian.basis is None else "full"
    note = None
    if gaussian.is_weak:
        how = (f"its correlations are shrunk by {gaussian.shrinkage:.2g}" if gaussian.shrinkage
               else "its sample covariance is used as it is, and numbers that rest on it are poor")
        note = f"the Gaussian reference comes from {gaussian.rows} rows in {dimensions} dimensions: {how}"
    return {"covariance": covariance, "dimensions": dimensions, "rows": gaussian.rows,
            "shrinkage": gaussian.shrinkage, "note": note}


def cautions(gaussian: Gaussian, proposal: LogSNRProposal, left: bool, right: bool) -> list[str]:
    """What a reader must know beside a number whose left or right tail is the Gaussian's: few words each.

    How much a tail holds follows from the Gaussian: 1/2 Integral g(a) da below, 1/2 Integral (d - g(a)) da above.
    """
    found = []
    if gaussian.is_weak and (left or right):
        found.append(f"reference from {gaussian.rows} rows")
    enough = CAUTION * len(gaussian.mean) * math.log(2)
    if left and 0.5 * (gaussian.variances * math.exp(proposal.low)).log1p().sum().item() > enough:
        found.append(f"under {proposal.low:.1f} the Gaussian alone")
    if right and 0.5 * (math.exp(-proposal.high) / gaussian.variances).log1p().sum().item() > enough:
        found.append(f"over {proposal.high:.1f} the Gaussian alone")
    return found


@torch.no_grad()
def codes_of(model: InfoDiff, sample: Sample) -> tuple[Tensor, Tensor | None]:
    """(mean, log-variance) of q(z|x) for all rows: [N, a_dim] each, the second None for a deterministic encoder."""
    with full_precision(model, sample.device.type):
        means, logvars = zip(*(model.posterior(x) for _, x in sample.batches()), strict=True)
    return torch.cat(means), None if logvars[0] is None else torch.cat(logvars)


def drawn_codes(mean: Tensor, logvar: Tensor, seed: int) -> Tensor:
    """One z of q(z|x) a row, a function of (seed, row). [N, a_dim]"""
    rows = torch.arange(len(mean), device=mean.device)
    return mean + (logvar / 2).exp() * Rng(seed, rows).normal("z", mean.shape[1])


class LogProb(NamedTuple):
    """log p(x) of images, or a lower bound of it on average, in nats.

    nats    [B]
    se      [B] the standard error of each over its log-SNR evaluations (of one dequantisation, and one z); NaN for one
    kind    'dequantised' (images: log P of the grey values), 'continuous' (points: log p); with 'elbo, ' before it
            where it is bounded by way of z
    """

    nats: Tensor
    se: Tensor
    kind: str

    @property
    def mean(self) -> Mean:
        """Over the images, with the standard error of that average."""
        return average(self.nats)


def log_prob(trained: Trained, x: Tensor, npoints: int, seed: int) -> LogProb:
    """log p of images [B, *shape]: the 'dequantised' (or 'continuous') row of `--mode nll`, image by image.

    Raises CommandError for a model that knows p(x|z) only.
    """
    model = trained.model
    if not hasattr(model, "denoise"):
        raise CommandError(f"{trained.path} is a VAE: log p(x) needs --model diff or vanilla")
    elbo = not model.has_unconditional
    if elbo and not (model.encoder is not None and model.stochastic):
        raise CommandError(f"{trained.path} knows p(x|z) only: train it with --z_dropout 0.1 for log p(x)")
    with full_precision(model, x.device.type):
        estimator, cost = unconditional(model.denoise), torch.zeros(len(x), dtype=torch.float64)
        if elbo:
            with torch.no_grad():
                mean, logvar = model.posterior(x)
            estimator = conditional(model.denoise, drawn_codes(mean, logvar, seed))
            cost = kl_to_normal(mean, logvar).double().cpu()
        batches = [(torch.arange(len(x), device=x.device), x)]
        curve = density_curve({"model": estimator}, batches, trained.lattice, model, proposal_of(model), npoints, seed)
    terms = 0.5 * curve.weight * curve.gap("model")  # [B, K]
    kind = "continuous" if trained.lattice is None else "dequantised"
    return LogProb(cells(model.shape, trained.lattice) - continuous_nll(curve, "model") - cost,
                   stratified_se(terms), f"elbo, {kind}" if elbo else kind)


def stratified_se(terms: Tensor) -> Tensor:
    """The standard error of means over strata in their order, by squared differences of neighbours. [B, K] -> [B]

    One draw a stratum shows no spread within it; differences from its neighbours do (Wolter 1985, sec. 7.2), where the
    spread of all would count the whole slope over the strata as error. The ends have one neighbour each. NaN for K = 1.
    """
    squares = terms.diff(dim=1).square()
    own = torch.cat([squares[:, :1], (squares[:, 1:] + squares[:, :-1]) / 2, squares[:, -1:]], dim=1) / 2  # [B, K]
    return own.mean(1).sqrt() / math.sqrt(terms.shape[1])


def density_curve(estimators: dict, batches, lattice: Lattice | None, model, proposal: LogSNRProposal, npoints: int,
                  seed: int, **bar) -> Curve:
    """The errors that a density is read from: at points as they are, at images dequantised."""
    batches = batches if lattice is None else dequantise(batches, lattice, seed)
    return error_curve(estimators, batches, model.gaussian, proposal, npoints, seed, **bar)


def cells(shape: tuple[int, ...], lattice: Lattice | None) -> float:
    """log of the volume of a lattice cell; 0 for points."""
    return 0.0 if lattice is None else math.prod(shape) * math.log(lattice.step)


def provenance(trained: Trained) -> dict:
    """What a result file says of its model; epoch 0 stands for an untuned pretrained network, averaged or not."""
    record = {**trained.provenance(), "seed": trained.config.r_seed, "versions": versions()}
    return record if trained.epoch else {**record, "ema": None}
