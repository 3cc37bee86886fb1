"""From noise to data and back. A sampler is a function of a denoiser, a starting point and a grid of log-SNRs:

    x = SAMPLERS[name](denoiser, x, grid, z, rng, on_step)          [B, *shape] -> [B, *shape]

grid        [steps + 1], from noise to data; ends in +inf, clean data, where no denoiser is called (`Schedule.grid`)
z           what the denoiser is conditioned on, or None
rng         of the samplers that draw noise: sample i does not depend on the batch that it is drawn in
on_step     called after every step, for a progress bar

A sampler's options (eta) are keywords with defaults; `config.SAMPLERS` has what the flags know of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion import predict_x
from rng import Rng
from utils import CommandError

Denoiser = Callable[..., Tensor]


def _signal_noise(a: float) -> tuple[float, float]:
    """(sqrt(sigmoid(a)), sqrt(sigmoid(-a))): how much of data and of noise there is at log-SNR a, which may be inf."""
    a = torch.tensor(a, dtype=torch.float64)
    return torch.sigmoid(a).sqrt().item(), torch.sigmoid(-a).sqrt().item()


def _level(x: Tensor, a: float) -> Tensor:
    return torch.full((len(x),), a, device=x.device)


def silent() -> None:
    """What is called after every step where there is no progress bar."""


@torch.no_grad()
def ddim(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
         on_step: Callable[[], None] = silent, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12); eta 0: deterministic; 1: the ancestral sampler of DDPM."""
    levels = grid.tolist()
    for step, (a, b) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        logsnr = _level(x, a)
        eps_hat = denoiser(x, logsnr, z)
        x_hat = predict_x(x, logsnr, eps_hat)
        sig = eta * _ancestral_deviation(a, b)
        signal, spread = _signal_noise(b)
        x = signal * x_hat + math.sqrt(max(spread**2 - sig**2, 0.0)) * eps_hat
        if sig > 0:
            x = x + sig * rng.at(step + 1).normal("sampler", *x.shape[1:])
        on_step()
    return x


def _ancestral_deviation(a: float, b: float) -> float:
    """sqrt((1 - abar_s)/(1 - abar_t)) sqrt(1 - abar_t/abar_s), for t at log-SNR a and s at b > a (DDIM, eq. 16)."""
    a, b = torch.tensor([a, b], dtype=torch.float64)
    ratio = torch.exp((F.logsigmoid(-b) - F.logsigmoid(-a)) / 2)
    return (ratio * (-torch.expm1(F.logsigmoid(a) - F.logsigmoid(b))).sqrt()).item()


def ddpm(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
         on_step: Callable[[], None] = silent) -> Tensor:
    """Ancestral sampling (DDPM, algorithm 2, posterior variance), which is DDIM with eta = 1."""
    return ddim(denoiser, x, grid, z, rng, on_step, eta=1.0)


@torch.no_grad()
def dpmpp(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
          on_step: Callable[[], None] = silent) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second-order multistep in half log-SNR, deterministic."""
    levels, before, h_before = grid.tolist(), None, None
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        logsnr = _level(x, a)
        x_hat = predict_x(x, logsnr, denoiser(x, logsnr, z))
        (_, spread_a), (signal_b, spread_b) = _signal_noise(a), _signal_noise(b)
        h = (b - a) / 2
        ahead = x_hat
        if before is not None and math.isfinite(h):  # the last step, to clean data, is first order
            slope = h / (2 * h_before)
            ahead = (1 + slope) * x_hat - slope * before
        x = (spread_b / spread_a) * x - signal_b * math.expm1(-h) * ahead
        before, h_before = x_hat, h
        on_step()
    return x


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp}


@torch.no_grad()
def ddim_invert(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, iterations: int = 3,
                on_step: Callable[[], None] = silent) -> Tensor:
    """The x at grid[0] from which deterministic DDIM over the same grid arrives at `x`. [B, *shape] -> [B, *shape]

    Solves every step backwards. Its noise estimate is wanted at the arrival level, which is not known yet, hence
    `iterations` rounds of the fixed point x_b = (alpha_b/alpha_a)(x_a - sigma_a e) + sigma_b e, e = eps_hat(x_b).
    """
    levels = grid.tolist()[::-1]  # from +inf down to noise
    eps_hat = torch.zeros_like(x)
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        (signal_a, spread_a), (signal_b, spread_b) = _signal_noise(a), _signal_noise(b)
        for _ in range(iterations):
            arrival = (signal_b / signal_a) * (x - spread_a * eps_hat) + spread_b * eps_hat
            eps_hat = denoiser(arrival, _level(x, b), z)
        x = (signal_b / signal_a) * (x - spread_a * eps_hat) + spread_b * eps_hat
        on_step()
    return x


def switch(first: Denoiser, second: Denoiser, at: float) -> Denoiser:
    """One denoiser that is `first`, without z, below the log-SNR `at` and `second` from there on (two-phase)."""

    def denoise(x: Tensor, logsnr: Tensor, z: Tensor | None = None) -> Tensor:
        return first(x, logsnr) if logsnr[0] < at else second(x, logsnr, z)

    return denoise


def guided(denoiser: Denoiser, weight: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): eps(null) + w (eps(z) - eps(null)); w = 1 is no guidance."""

    def denoise(x: Tensor, logsnr: Tensor, z: Tensor | None = None) -> Tensor:
        null = denoiser(x, logsnr)
        return null + weight * (denoiser(x, logsnr, z) - null)

    return denoise


def sample(sampler: str, denoiser: Denoiser, rng: Rng, shape: tuple[int, ...], grid: Tensor,
           z: Tensor | None = None, on_step: Callable[[], None] = silent, **options: float) -> Tensor:
    """Draw the samples that `rng` numbers, from their own x_T, with a sampler of SAMPLERS. -> [B, *shape]

    options     eta, where the sampler takes it. Raises CommandError for an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise CommandError(f"unknown sampler '{sampler}' (known: {', '.join(SAMPLERS)})")
    x = rng.at(0).normal("x_T", *shape)
    return SAMPLERS[sampler](denoiser, x, grid, z, rng, on_step, **options)


def generate(model, rng: Rng, z: Tensor | None = None, sampler: str = "ddpm", steps: int | None = None,
             spacing: str = "time", guidance: float = 1.0, denoiser: Denoiser | None = None,
             on_step: Callable[[], None] = silent, **options: float) -> Tensor:
    """Samples of any model of models.py, for the numbered samples of `rng`. -> [B, *shape]

    z           what the samples are conditioned on; by default each sample's draw from the model's prior
    steps       of the sampler; by default all of the model's schedule
    denoiser    in place of the model's own (two-phase sampling)
    options     of the sampler: eta
    """
    latent = getattr(model, "latent", None)
    if z is None and latent is not None:
        z = latent.prior(rng.at(0))
    if hasattr(model, "decode"):
        with torch.no_grad():
            return model.decode(z)
    denoiser = denoiser or (model.denoise if guidance == 1 else guided(model.denoise, guidance))
    grid = model.grid(steps or model.schedule.steps, spacing)
    return sample(sampler, denoiser, rng, model.shape, grid, z, on_step, **options)
