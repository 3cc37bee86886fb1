"""The mutual information I(x; z) of data and latent, from denoising errors and from the encoder alone.

    difference   I = 1/2 Integral E[ |eps - eps_hat(x_a)|^2 - |eps - eps_hat(x_a, z)|^2 ] da
    orthogonal   I = 1/2 Integral E |eps_hat(x_a) - eps_hat(x_a, z)|^2 da
    I_q          mean log [ q(z_i|x_i) / (1/N sum_j q(z_i|x_j)) ], of a stochastic encoder, with no denoiser

The first two (Kong et al. 2024, information decomposition in diffusion models) are read from one `density.Curve` whose
branches share (a, eps). The difference is off by the difference of the two branches' excess errors; the orthogonal form
has less variance but equals I only for ideal branches. Both hold for z drawn with its x, never for mismatched z.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor

from diffusion import Gaussian, LogSNRProposal
from information.likelihood import Curve, Mean, Profile, average, conditional, error_curve, profile, unconditional

UNCONDITIONAL = "unconditional"
SATURATION = 1.0  # nats below log N within which I_q says little


@dataclass(frozen=True)
class Information:
    """I(x; z), sample by sample and over log-SNR.

    difference, orthogonal  [N] nats, the two forms
    gap                     E[error without z - error with z] over log-SNR; its `nats` are halved parts of I
    """

    difference: Tensor
    orthogonal: Tensor
    gap: Profile


def information_curve(
    without_z, with_z: dict[str, tuple], batches: Iterable[tuple[Tensor, Tensor]], gaussian: Gaussian,
    proposal: LogSNRProposal, npoints: int, seed: int, **bar,
) -> Curve:
    """Errors of a denoiser without z and of denoisers with z, all on the same noisy inputs.

    without_z   a denoiser
    with_z      name -> (denoiser, z [N, a_dim] by sample index)
    bar         `progress` and `count` of density.error_curve
    """
    estimators = {UNCONDITIONAL: unconditional(without_z)}
    estimators |= {name: conditional(denoiser, z) for name, (denoiser, z) in with_z.items()}
    between = {_distance(name): (UNCONDITIONAL, name) for name in with_z}
    return error_curve(estimators, batches, gaussian, proposal, npoints, seed, between=between, **bar)


def _distance(name: str) -> str:
    return f"{UNCONDITIONAL} to {name}"


def information(curve: Curve, name: str, bins: int = 25) -> Information:
    """Both forms of I(x; z) for the denoiser `name` of an `information_curve`."""
    gap = curve.gap(name, reference=UNCONDITIONAL)
    return Information(
        difference=0.5 * curve.integral(gap),
        orthogonal=0.5 * curve.integral(curve.errors[_distance(name)]),
        gap=profile(curve, gap, bins),
    )


# ---------------------------------------------------------------------------------------------------------------------
# One latent dimension at a time


def scramble(z: Tensor) -> Tensor:
    """z in which sample i's entry i mod a_dim is its neighbour's: one entry a sample, each in turn. [N, a_dim]"""
    row = torch.arange(len(z), device=z.device)
    column = row % z.shape[1]
    mixed = z.clone()
    mixed[row, column] = z.roll(1, 0)[row, column]
    return mixed


def reliance(curve: Curve, name: str, scrambled: str, a_dim: int) -> list[Mean]:
    """Nats that the denoiser loses when one entry of z comes from another image: a value a latent dimension.

    No decomposition of I(x; z): entries that carry the same information each seem worthless, or each essential.
    `scrambled` names the denoiser given `scramble(z)`. Needs N >= 2 a_dim.
    """
    loss = 0.5 * curve.integral(curve.gap(name, reference=scrambled))
    return [average(loss[dimension::a_dim]) for dimension in range(a_dim)]


# ---------------------------------------------------------------------------------------------------------------------
# The encoder alone


@dataclass(frozen=True)
class EncoderInformation:
    """I_q of N samples, [N] nats each: their means bound I(x; z), x from the data, from below and from above.

    included        sample i among the N that make up q(z): at most log N
    left_out        made up of the other N - 1
    per_dimension   [N, a_dim] the lower bound for each entry of z alone
    """

    included: Tensor
    left_out: Tensor
    per_dimension: Tensor


def encoder_information(mean: Tensor, logvar: Tensor, z: Tensor, chunk: int = 256) -> EncoderInformation:
    """I_q of q(z|x_i) = N(mean_i, e^logvar_i) at z_i drawn from it; all [N, a_dim], N >= 2."""
    mean, logvar, z = mean.double(), logvar.double(), z.double()
    included, left_out, single = [], [], []
    for start in range(0, len(z), chunk):
        own = torch.arange(start, min(start + chunk, len(z)), device=z.device)
        # log q(z_i,d | x_j), without the constant that cancels. [chunk, N] at a time, a latent dimension after another.
        joint = 0.0
        alone = []
        for d in range(z.shape[1]):
            scaled = (z[own, d, None] - mean[:, d]) * (-logvar[:, d] / 2).exp()
            logs = -0.5 * (scaled**2 + logvar[:, d])
            alone.append(_against_mixture(logs, own))
            joint = joint + logs
        included.append(_against_mixture(joint, own))
        left_out.append(_against_mixture(joint, own, leave_out=True))
        single.append(torch.stack(alone, 1))
    return EncoderInformation(torch.cat(included), torch.cat(left_out), torch.cat(single))


def _against_mixture(logs: Tensor, own: Tensor, leave_out: bool = False) -> Tensor:
    """log q(z_i|x_i) - log mean_j q(z_i|x_j). logs [chunk, N], own [chunk] the column of each row's x_i -> [chunk]"""
    row, count = torch.arange(len(own), device=own.device), logs.shape[1]
    mine = logs[row, own]
    if leave_out:
        logs, count = logs.index_put((row, own), logs.new_tensor(-math.inf)), count - 1
    return mine - torch.logsumexp(logs, dim=1) + math.log(count)


# ---------------------------------------------------------------------------------------------------------------------
# Consistency


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


def check_encoder(iq: Mean, rate: Mean | None, count: int) -> Check:
    """I_q cannot exceed log N, nor the rate, which is I plus a divergence."""
    limit = min(math.log(count), rate.mean if rate else math.inf)
    slack = 2 * (rate.se if rate else 0.0)
    return Check("I_q <= min(log N, rate)", iq.mean <= limit + slack, f"I_q {iq.mean:.3f}, limit {limit:.3f} nats")


def check_against_encoder(label: str, estimate: Mean, iq: Mean, count: int) -> Check | None:
    """A denoiser cannot find more in z than the encoder put there; None where I_q is saturated and says nothing."""
    if iq.mean >= math.log(count) - SATURATION:
        return None
    allowed = iq.mean + 2 * math.hypot(estimate.se, iq.se)
    return Check(f"{label} <= I_q + 2 SE", estimate.mean <= allowed, f"{estimate.mean:.3f} against {allowed:.3f} nats")


def check_gap(label: str, gap: Profile) -> Check:
    """Knowing z never costs: the gap is nowhere negative, beyond 2 SE taken over all bins at once (Bonferroni)."""
    limit = -NormalDist().inv_cdf(NormalDist().cdf(-2.0) / len(gap.mean))
    scores = gap.mean / gap.se.clamp(min=1e-12)
    worst = scores.argmin()
    where = f"{scores[worst]:.2f} SE at log-SNR {gap.logsnr[worst]:.1f}"
    detail = f"lowest {where}; limit -{limit:.2f} over {len(scores)} bins"
    return Check(f"gap >= 0 at every log-SNR ({label})", bool(scores[worst] >= -limit), detail)


def check_tau(taus: Sequence[float], informations: Sequence[Information]) -> Check:
    """Less noise on z never lowers I; differences are paired, since all share (a, eps) and the noise on z."""
    order = sorted(range(len(taus)), key=lambda i: taus[i])
    scores = []
    for fine, coarse in pairwise(order):
        difference = average(informations[fine].difference - informations[coarse].difference)
        scores.append((difference.mean / max(difference.se, 1e-12), taus[fine], taus[coarse]))
    score, fine, coarse = min(scores)
    detail = f"lowest: I at tau {fine:g} above I at {coarse:g} by {score:.2f} SE"
    return Check("a smaller tau never lowers I", score >= -2, detail)
