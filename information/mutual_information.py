"""What a denoiser makes of z: its usable information, which is I(x; z) for ideal denoisers and for those alone.

    difference   1/2 Integral E[ |eps - eps_hat(x_a)|^2 - |eps - eps_hat(x_a, z)|^2 ] da
    orthogonal   1/2 Integral E |eps_hat(x_a) - eps_hat(x_a, z)|^2 da

(Kong et al. 2024, information decomposition in diffusion models.) Both are read from one `likelihood.Curve` whose
branches share (a, eps). A trained network errs by hundreds of nats on images, and less with z than without: what z
saves this network may be many times I(x; z), which `interval.py` bounds. The two forms agree wherever the branch with z
is ideal, whatever the other one is, so their agreement proves nothing. Both hold for z drawn with its x, never for
mismatched z.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion import Gaussian, LogSNRProposal
from information.likelihood import Curve, Mean, Profile, average, conditional, error_curve, profile, unconditional

UNCONDITIONAL = "unconditional"


@dataclass(frozen=True)
class Forms:
    """The usable information, sample by sample and over log-SNR.

    difference, orthogonal  [N] nats, the two forms
    gap                     E[error without z - error with z] over log-SNR; its `nats` are halved parts of the first
    """

    difference: Tensor
    orthogonal: Tensor
    gap: Profile


def usable_curve(
    without_z, with_z: dict[str, tuple], batches: Iterable[tuple[Tensor, Tensor]], gaussian: Gaussian,
    proposal: LogSNRProposal, npoints: int, seed: int, **bar,
) -> Curve:
    """Errors of a denoiser without z and of denoisers with z, all on the same noisy inputs.

    without_z   a denoiser
    with_z      name -> (denoiser, z [N, a_dim] by sample index)
    bar         `progress` and `count` of likelihood.error_curve
    """
    estimators = {UNCONDITIONAL: unconditional(without_z)}
    estimators |= {name: conditional(denoiser, z) for name, (denoiser, z) in with_z.items()}
    between = {_distance(name): (UNCONDITIONAL, name) for name in with_z}
    return error_curve(estimators, batches, gaussian, proposal, npoints, seed, between=between, **bar)


def _distance(name: str) -> str:
    return f"{UNCONDITIONAL} to {name}"


def both_forms(curve: Curve, name: str, bins: int = 25) -> Forms:
    """The usable information of the denoiser `name`, from a `usable_curve`."""
    gap = curve.gap(name, reference=UNCONDITIONAL)
    return Forms(
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


def lost_below(gaussian: Gaussian, low: float) -> float:
    """The most that I(x_a; z) can be at log-SNR `low`, where an integral starts: 1/2 sum log(1 + e^low lambda), nats.

    The Gaussian channel's capacity at the data's covariance, whatever z is.
    """
    return 0.5 * torch.log1p(gaussian.variances * math.exp(low)).sum().item()
