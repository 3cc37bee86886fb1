"""Variational bounds of a denoiser over discrete steps 1 .. T: DDPM's, with fixed or learned variance, and VDM's.

Both use the same evaluation of a step: VDM's loss is the noise error weighted by how much the SNR falls, DDPM's is the
KL of the reverse step with x_hat clipped to the data's range. The bound of VDM in continuous time is read from the
error curve: `likelihood.discrete_nll(curve, name, left="normal")`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffusion import LogSNRProposal, Schedule, diffuse, log_normal_interval, per_sample, predict_x
from information.lattice import Lattice
from information.likelihood import Estimator, channel_kl, exact_float32
from rng import Rng
from utils import progress_bar


@dataclass(frozen=True)
class DiscreteBounds:
    """Terms of both bounds, [N] nats each.

    prior           KL(q(x_T|x) || N(0, I)), which the two share
    ddpm, vdm       the steps 2 .. T
    ddpm_decoder    -log p(x|x_1), a Gaussian integrated over each lattice cell
    vdm_decoder     -log p(x|x_1), a softmax over the lattice
    """

    prior: Tensor
    ddpm: Tensor
    ddpm_decoder: Tensor
    vdm: Tensor
    vdm_decoder: Tensor

    @property
    def ddpm_nll(self) -> Tensor:
        """Ho et al. 2020, eq. 5. [N] nats"""
        return self.prior + self.ddpm + self.ddpm_decoder

    @property
    def vdm_nll(self) -> Tensor:
        """Kingma et al. 2021, eqs. 11 and 13. [N] nats"""
        return self.prior + self.vdm + self.vdm_decoder

    @classmethod
    def concatenate(cls, parts: Sequence[DiscreteBounds]) -> DiscreteBounds:
        """The samples of all parts, in their order."""
        return cls(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)))


def fixed_variance(estimator: Estimator):
    """An estimator of the noise alone in the form that `discrete_bounds` takes."""
    return lambda x_noisy, logsnr, index: (estimator(x_noisy, logsnr, index), None)


def discrete_bounds(
    noise_and_variance, batches: Iterable[tuple[Tensor, Tensor]], schedule: Schedule, lattice: Lattice,
    proposal: LogSNRProposal, npoints: int, seed: int, *, progress: str | None = None, count: int | None = None,
) -> DiscreteBounds:
    """Unbiased estimates of the DDPM and VDM bounds from K of the T steps of each sample.

    noise_and_variance  (x_noisy, logsnr, index) -> eps_hat, and v in [-1, 1] of its shape; None for fixed variances
    schedule            the network's own steps
    lattice             the values of the discrete data; x_hat is clipped to their range
    proposal            where along log-SNR more steps are evaluated; the importance weights correct for it
    npoints             K, one step in each stratum; step 1, the decoder's, is evaluated besides
    progress, count     text and length of a progress bar over samples; None for no bar
    """
    probability = _step_probability(schedule, proposal)
    rows = []
    with progress_bar(total=count, desc=progress, disable=progress is None, leave=False, unit="sample") as bar:
        for index, x in batches:
            with torch.no_grad(), exact_float32(x.device.type):
                decoders = _decoders(noise_and_variance, x, Rng(seed, index), schedule, lattice)
                prior = channel_kl(x.flatten(1).double(), torch.ones((), device=x.device), schedule.logsnr_range[0])
                steps = torch.zeros_like(decoders)
                for k in range(npoints):
                    rng = Rng(seed, index, k)
                    steps += _steps(noise_and_variance, x, rng, schedule, lattice, probability, k, npoints)
                    bar.update(len(x) / npoints)
            rows.append(torch.stack([prior, steps[0], decoders[0], steps[1], decoders[1]]).cpu())
    return DiscreteBounds(*torch.cat(rows, dim=1))


def _step_probability(schedule: Schedule, proposal: LogSNRProposal) -> Tensor:
    """Probability of evaluating each of the steps 2 .. T, [T - 1]: the proposal's mass between them, 1/10 uniform."""
    table = schedule.logsnr_table
    share = (table[:-1] - table[1:]) / proposal.weight((table[:-1] + table[1:]) / 2)
    return 0.9 * share / share.sum() + 0.1 / len(share)


def _steps(noise_and_variance, x, rng, schedule, lattice, probability, k, npoints) -> Tensor:
    """One stratum's part of the sums over the steps 2 .. T. -> [2, B]: DDPM, VDM"""
    table, betas = schedule.logsnr_table.to(x.device), schedule.betas.to(x.device)
    probability = probability.to(x.device)
    quantile = (k + rng.uniform("step").double()) / npoints
    place = torch.searchsorted(probability.cumsum(0), quantile).clamp(max=len(probability) - 1)  # [B]
    a, a_before, beta = table[place + 1], table[place], betas[place + 1]  # step t = place + 2, and t - 1
    eps = rng.normal("eps", *x.shape[1:])
    x_noisy = diffuse(x, a, eps)
    eps_hat, v = noise_and_variance(x_noisy, a.float(), rng.index)
    importance = 1 / (npoints * probability[place])
    ddpm = _reverse_kl(x, predict_x(x_noisy, a, eps_hat), v, a, a_before, beta, lattice)
    error = (eps - eps_hat).square().flatten(1).sum(1, dtype=torch.float64)
    vdm = 0.5 * torch.expm1(a_before - a) * error  # VDM, eq. 13
    return torch.stack([ddpm, vdm]) * importance


def _reverse_kl(x, x_hat, v, a, a_before, beta, lattice) -> Tensor:
    """L_{t-1}: KL of the reverse step from the forward posterior (DDPM, eq. 8; variances Nichol & Dhariwal, eq. 15)."""
    posterior = beta * torch.sigmoid(-a_before) / torch.sigmoid(-a)  # DDPM, eq. 7
    factor = torch.sigmoid(a_before).sqrt() * beta / torch.sigmoid(-a)  # mu_q - mu_theta = factor (x - x_hat)
    gap = (per_sample(factor, x) * (x - x_hat.clamp(lattice.low, lattice.high))).double().square()
    log_posterior = per_sample(posterior.log(), gap)
    log_sigma2 = _log_variance(v, log_posterior, per_sample(beta.log(), gap))
    excess = log_sigma2 - log_posterior
    return 0.5 * (excess + torch.expm1(-excess) + gap * (-log_sigma2).exp()).flatten(1).sum(1)


def _log_variance(v: Tensor | None, log_posterior: Tensor, log_beta: Tensor) -> Tensor:
    """Of the reverse step: log beta where it is fixed, else between the two bounds by v."""
    if v is None:
        return log_beta
    share = (v.double() + 1) / 2
    return share * log_beta + (1 - share) * log_posterior


def _decoders(noise_and_variance, x, rng, schedule, lattice) -> Tensor:
    """-log p(x|x_1) twice. -> [2, B]: DDPM's Gaussian cells (sec. 3.3), VDM's softmax"""
    a = schedule.logsnr_table[0].to(x.device).expand(len(x))
    eps = rng.normal("decoder", *x.shape[1:])
    x_noisy = diffuse(x, a, eps)
    eps_hat, v = noise_and_variance(x_noisy, a.float(), rng.index)
    x_hat = predict_x(x_noisy, a, eps_hat).clamp(lattice.low, lattice.high).double()
    # The posterior variance of step 1 is 0; that of step 2 is used instead, for the fixed variance too.
    beta1, beta2 = schedule.betas[:2].to(x.device)
    log_posterior = (beta2 * torch.sigmoid(-a[:1]) / torch.sigmoid(-schedule.logsnr_table[1])).log()
    log_sigma2 = _log_variance(v, log_posterior, beta1.log() if v is not None else log_posterior)
    return torch.stack([_cell_nll(x, x_hat, (log_sigma2 / 2).exp(), lattice), lattice.softmax_nll(x, a, eps)])


def _cell_nll(x: Tensor, mean: Tensor, sigma: Tensor, lattice: Lattice) -> Tensor:
    """-log of a Gaussian's mass in the lattice cell of x, the end cells open. [B, *shape] -> [B] nats"""
    level = lattice.level(x).double()
    centre, half = lattice.low + lattice.step * level, lattice.step / 2
    lower = ((centre - half - mean) / sigma).masked_fill(level == 0, -math.inf)
    upper = ((centre + half - mean) / sigma).masked_fill(level == lattice.levels - 1, math.inf)
    return -log_normal_interval(lower, upper).flatten(1).sum(1)
