"""Likelihood as an integral over log-SNR of a denoiser's error (information-theoretic diffusion, Kong et al. 2023).

The error curve of one or several denoisers is measured once (`error_curve`), with the same noisy inputs for all of them
and for a Gaussian reference. Every bound is then read from that record; bounds differ in their tails only:

    continuous   -log p(x)  = -log N(x; mu, Sigma) + 1/2 Integral_L^R E[|eps - eps_hat|^2 - |eps - eps_G|^2] da
    discrete     -log P(x) <= left(L) + 1/2 Integral_L^R E|eps - eps_hat|^2 da + right(R)

Outside [L, R] the Gaussian's own denoiser is used, so both hold on average for any denoiser and any range. Everything
is in nats a sample, summed over dimensions; errors come from float32 networks and are summed in float64.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion import Gaussian, LogSNRProposal, diffuse, predict_x
from information.lattice import Lattice
from rng import Rng
from utils import progress_bar

Denoiser = Callable[..., Tensor]  # (x_noisy [B, *shape], logsnr [B], z [B, a_dim] or None) -> eps_hat [B, *shape]
Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_noisy, logsnr, index [B]) -> eps_hat
GAUSSIAN = "gaussian"  # the name of the reference among the errors of a curve


def unconditional(denoiser: Denoiser) -> Estimator:
    """The denoiser's branch without z."""
    return lambda x_noisy, logsnr, index: denoiser(x_noisy, logsnr)


def conditional(denoiser: Denoiser, z: Tensor) -> Estimator:
    """The denoiser conditioned on z [N, a_dim]; row i belongs to the sample with index i."""
    return lambda x_noisy, logsnr, index: denoiser(x_noisy, logsnr, z[index])


@contextlib.contextmanager
def exact_float32(device_type: str = "cuda"):
    """No TF32 and no autocast inside, which would destroy the noise at high log-SNR. Restores what it found."""
    precision = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


class Mean(NamedTuple):
    """An average over independent samples, and its standard error."""

    mean: float
    se: float


def average(values: Tensor) -> Mean:
    """[N] independent values -> their mean with sd / sqrt(N); one value alone has an unknown (infinite) error."""
    se = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Mean(values.mean().item(), se)


# ---------------------------------------------------------------------------------------------------------------------
# The error curve


@dataclass(frozen=True)
class Curve:
    """Squared errors of several denoisers of N samples at K log-SNRs each. Column k is stratum k of the proposal.

    logsnr, weight  [N, K] float64: Integral_low^high f da is estimated by the mean of weight * f
    errors          name -> [N, K] float64, |eps - eps_hat|^2 summed over dimensions; 'gaussian' is the reference
    gaussian_nll    [N] -log N(x; mu, Sigma)
    tails           name -> [N] nats, for data on a lattice: 'gaussian' and 'normal' (left), 'softmax' and 'rounding'
    """

    logsnr: Tensor
    weight: Tensor
    errors: dict[str, Tensor]
    gaussian_nll: Tensor
    tails: dict[str, Tensor]
    dimensions: int
    low: float
    high: float

    def __len__(self) -> int:
        return len(self.logsnr)

    def integral(self, values: Tensor) -> Tensor:
        """[N, K] values of an integrand -> [N] estimates of its integral over [low, high]."""
        return (self.weight * values).mean(1)

    def gap(self, name: str, reference: str = GAUSSIAN) -> Tensor:
        """How much smaller the error is than the reference's. [N, K]"""
        return self.errors[reference] - self.errors[name]

    def largest_term(self, name: str) -> float:
        """The largest |weight * gap| / 2 of any evaluation: do not trust an integral that one term dominates."""
        return (0.5 * self.weight * self.gap(name)).abs().max().item()

    @classmethod
    def concatenate(cls, parts: Sequence[Curve]) -> Curve:
        def join(pick):
            return torch.cat([pick(part) for part in parts])

        return replace(
            parts[0], logsnr=join(lambda p: p.logsnr), weight=join(lambda p: p.weight),
            gaussian_nll=join(lambda p: p.gaussian_nll),
            errors={name: join(lambda p, name=name: p.errors[name]) for name in parts[0].errors},
            tails={name: join(lambda p, name=name: p.tails[name]) for name in parts[0].tails},
        )


def error_curve(
    estimators: dict[str, Estimator], batches: Iterable[tuple[Tensor, Tensor]], gaussian: Gaussian,
    proposal: LogSNRProposal, npoints: int, seed: int, *, lattice: Lattice | None = None, soft: bool = False,
    between: dict[str, tuple[str, str]] | None = None, progress: str | None = None, count: int | None = None,
) -> Curve:
    """Measure the errors of all estimators on the same noisy inputs.

    estimators  name -> callable; the caller puts the networks inside into evaluation mode
    batches     (index [B] int64, x [B, *shape] float32), all on one device, the index numbering the samples from 0
    gaussian    the reference, on that device
    npoints     K log-SNRs a sample, one in each stratum of the proposal, each with noise of its own
    lattice     where the data is discrete: adds tails and, a name, errors 'NAME hard' (x_hat rounded to the lattice)
    soft        adds 'NAME soft' (soft-rounded) as well
    between     label -> two names: adds, as an error, the squared distance of their two estimates
    progress    text of a progress bar with the running estimate of the first name; None for no bar
    count       number of samples, for that bar

    The result is a function of (seed, index), whatever the batch size. It lies on the CPU.
    """
    parts, total, done = [], 0.0, 0
    first = next(iter(estimators))
    total_calls = count and count * npoints
    with progress_bar(total=total_calls, desc=progress, disable=progress is None, leave=False, unit="estimate") as bar:
        for index, x in batches:
            with torch.no_grad(), exact_float32(x.device.type):
                part = _batch_curve(estimators, index, x, gaussian, proposal, npoints, seed, lattice, soft,
                                    between or {}, bar)
            parts.append(part)
            total, done = total + continuous_nll(part, first).sum().item(), done + len(part)
            bar.set_postfix_str(f"density {total / done:.4f} nats")
    return Curve.concatenate(parts)


def _batch_curve(estimators, index, x, gaussian, proposal, npoints, seed, lattice, soft, between, bar) -> Curve:
    columns, logsnrs = [], []
    for k in range(npoints):
        rng = Rng(seed, index, k)
        # The quantile (k + U)/K. The weight is taken at the float32 value that the network receives.
        logsnr = proposal.draw((k + rng.uniform("logsnr").double()) / npoints)[0].float()
        eps = rng.normal("eps", *x.shape[1:])
        columns.append(_errors_at(estimators, index, x, logsnr, eps, gaussian, lattice, soft, between))
        logsnrs.append(logsnr.double())
        bar.update(len(x))
    logsnr = torch.stack(logsnrs, 1)
    return Curve(
        logsnr=logsnr.cpu(), weight=proposal.weight(logsnr).cpu(),
        errors={name: torch.stack([column[name] for column in columns], 1).cpu() for name in columns[0]},
        gaussian_nll=gaussian.nll_nats(x).cpu(),
        tails=_tails(x, Rng(seed, index), gaussian, lattice, proposal.low, proposal.high) if lattice else {},
        dimensions=x[0].numel(), low=proposal.low, high=proposal.high,
    )


def _errors_at(estimators, index, x, logsnr, eps, gaussian, lattice, soft, between) -> dict[str, Tensor]:
    """Squared errors at one log-SNR a sample: name -> [B] float64."""
    x_noisy = diffuse(x, logsnr, eps)
    estimates = {name: estimator(x_noisy, logsnr, index) for name, estimator in estimators.items()}
    errors = {GAUSSIAN: _squared(eps - gaussian.denoise(x_noisy, logsnr))}
    for name, eps_hat in estimates.items():
        errors[name] = _squared(eps - eps_hat)
        if lattice:
            # |eps - eps_hat|^2 = e^a |x - x_hat|^2; x goes through the lattice too, so that a hit is exactly 0.
            snr, exact = logsnr.double().exp(), lattice.hard(x)
            x_hat = predict_x(x_noisy, logsnr, eps_hat)
            errors[f"{name} hard"] = snr * _squared(exact - lattice.hard(x_hat))
            if soft:
                errors[f"{name} soft"] = snr * _squared(exact - lattice.soft(x_hat, logsnr))
    for label, (one, other) in between.items():
        errors[label] = _squared(estimates[one] - estimates[other])
    return errors


def _squared(difference: Tensor) -> Tensor:
    """|.|^2 of every sample. [B, *shape] -> [B] float64"""
    return difference.float().square().flatten(1).sum(1, dtype=torch.float64)


def _tails(x: Tensor, rng: Rng, gaussian: Gaussian, lattice: Lattice, low: float, high: float) -> dict[str, Tensor]:
    """What lies outside [low, high] for discrete data, in nats: name -> [B]."""
    top = torch.full((len(x),), high, device=x.device)
    rounding = lattice.rounding_tail(high) * x[0].numel()
    return {
        "gaussian": channel_kl(gaussian.rotate(x.flatten(1).double() - gaussian.mean), gaussian.variances, low).cpu(),
        "normal": channel_kl(x.flatten(1).double(), torch.ones((), device=x.device), low).cpu(),
        "softmax": lattice.softmax_nll(x, top, rng.normal("decoder", *x.shape[1:])).cpu(),
        "rounding": torch.full((len(x),), rounding, dtype=torch.float64),
    }


def channel_kl(y: Tensor, variances: Tensor, logsnr: float) -> Tensor:
    """KL of the noisy x from a Gaussian's noisy x at one log-SNR: the left tail, and VDM's prior term with variance 1.

    y [B, d] float64, coordinates of x - mu along the eigenvectors; variances [d] or [] -> [B] nats
    """
    a = torch.tensor(logsnr, dtype=torch.float64, device=y.device)
    signal, noise = torch.sigmoid(a), torch.sigmoid(-a)
    spread = signal * variances.double() + noise
    return 0.5 * (torch.log(spread / noise) + (noise + signal * y**2) / spread - 1).sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# Bounds, all read from the curve


def continuous_nll(curve: Curve, name: str) -> Tensor:
    """-log p(x) of a density (ITD, eq. 8, with a Gaussian for reference and control variate). -> [N] nats

    On lattice points, minus d log step, it is the 'lattice value' that papers print, which bounds nothing; on
    `dequantise`d points, minus d log step, it bounds -log P.
    """
    return curve.gaussian_nll - 0.5 * curve.integral(curve.gap(name))


def discrete_nll(curve: Curve, name: str, left: str = GAUSSIAN, right: str = "softmax") -> Tensor:
    """Upper bound on -log P(x) of lattice data (ITD, sec. 3; VDM, eq. 11 with left='normal'). -> [N] nats

    left    'gaussian': the data's first two moments at log-SNRs below [low, high]; 'normal': N(0, I)
    right   'softmax': VDM's decoder of x at log-SNR `high`; 'rounding': the nearest lattice value above `high`
    """
    return curve.tails[left] + 0.5 * curve.integral(curve.errors[name]) + curve.tails[right]


def dequantise(batches: Iterable[tuple[Tensor, Tensor]], lattice: Lattice, seed: int):
    """The same batches with uniform noise that fills the lattice's cells: x + step (U - 1/2)."""
    for index, x in batches:
        yield index, x + lattice.step * (Rng(seed, index).uniform("dequantise", *x.shape[1:]) - 0.5)


def choose(curve: Curve, names: Sequence[str]) -> list[str]:
    """The name with the smallest mean error in each stratum: [K]. Only on other data is the choice a valid model."""
    losses = torch.stack([(curve.weight * curve.errors[name]).mean(0) for name in names])  # [names, K]
    return [names[i] for i in losses.argmin(0).tolist()]


def combine(curve: Curve, label: str, choice: Sequence[str]) -> Curve:
    """The curve with a further estimator `label`: in stratum k the one named choice[k]."""
    errors = torch.stack([curve.errors[name][:, k] for k, name in enumerate(choice)], 1)
    return replace(curve, errors={**curve.errors, label: errors})


# ---------------------------------------------------------------------------------------------------------------------
# Functions of log-SNR


@dataclass(frozen=True)
class Profile:
    """Means of an integrand in bins of log-SNR, empty bins left out.

    logsnr      [bins] where the bin's evaluations lie on average
    mean, se    [bins] the integrand there and its standard error
    nats        [bins] the bin's part of the integral
    """

    logsnr: Tensor
    mean: Tensor
    se: Tensor
    nats: Tensor

    def columns(self) -> dict[str, list[float]]:
        """As it stands in a result file."""
        return {name: value.tolist() for name, value in vars(self).items()}


def profile(curve: Curve, values: Tensor, bins: int = 40) -> Profile:
    """Average [N, K] values over the samples, in even bins of log-SNR."""
    place = ((curve.logsnr - curve.low) / (curve.high - curve.low) * bins).long().clamp(0, bins - 1)

    def part(integrand: Tensor) -> Tensor:  # -> [N, bins]
        empty = torch.zeros(len(curve), bins, dtype=torch.float64)
        return empty.scatter_add(1, place, curve.weight * integrand) / curve.weight.shape[1]

    # [N, bins] each: the bin's extent in log-SNR, and the integrals of the values and of log-SNR over it.
    extent, moment, centre = part(torch.ones_like(values)), part(values), part(curve.logsnr)
    kept = extent.sum(0) > 0
    extent, moment, centre = extent[:, kept], moment[:, kept], centre[:, kept]
    mean = moment.sum(0) / extent.sum(0)
    # A ratio of means: its error by the delta method.
    residual = (moment - mean * extent).square().mean(0).sqrt()
    se = residual / extent.mean(0) / math.sqrt(len(curve))
    return Profile(centre.sum(0) / extent.sum(0), mean, se, moment.mean(0))
