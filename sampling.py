"""From noise to data and back. A sampler is a function of a denoiser, a starting point and a grid of log-SNRs:

    x = SAMPLERS[name](denoiser, x, grid, z, rng, on_step)          [B, *shape] -> [B, *shape]

grid        [steps + 1], from noise to data; ends in +inf, clean data, where no denoiser is called (`Schedule.grid`)
z           what the denoiser is conditioned on, or None
rng         of the samplers that draw noise: sample i does not depend on the batch that it is drawn in
on_step     called after every step, for a progress bar

A sampler's options (eta, order) are keywords with defaults; `config.SAMPLERS` has what the flags know of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import config
from config import Config
from diffusion import even_grid, predict_x
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
    for step, (a, b) in enumerate(pairwise(levels)):
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


# ---------------------------------------------------------------------------------------------------------------------
# Steps along the probability-flow ODE, in lambda = log-SNR / 2, alpha = sqrt(sigmoid(2 lambda)), rho = e^-lambda

_POINTS, _SHARES = np.polynomial.legendre.leggauss(16)  # of a step: its integrals to rounding
Past = list[tuple[float, Tensor]]  # log-SNRs and the estimates made there, the newest first


def _weights(nodes: list[float], a: float, b: float, sign: int, middle: bool) -> list[float]:
    """What the estimates at the log-SNRs `nodes` weigh in a step from log-SNR a to b.

    integral_0^h e^(t - h) P(t) dt where sign is 1, integral_0^h e^-t P(t) dt where it is -1, with h = (b - a)/2 and P
    the polynomial through the estimates in t = lambda - lambda_a; `middle` takes P(h/2) for P(t), as 2M solvers do.
    """
    if b == math.inf:  # both integrals of 1; no higher order ends in clean data
        return [1.0]
    h, places = (b - a) / 2, [(node - a) / 2 for node in nodes]
    t = h * (_POINTS + 1) / 2
    kernel = h / 2 * _SHARES * np.exp(t - h if sign > 0 else -t)
    at = np.full_like(t, h / 2) if middle else t
    basis = [math.prod(((at - other) / (own - other) for other in places if other != own), start=np.ones_like(t))
             for own in places]
    return [float(kernel @ polynomial) for polynomial in basis]


def _data_step(x: Tensor, a: float, b: float, past: Past, middle: bool = False) -> Tensor:
    """x_b = sigma_b/sigma_a x_a + alpha_b integral e^(lambda - lambda_b) x_hat dlambda (Lu et al. 2022b, eq. 8)."""
    (_, spread_a), (signal_b, spread_b) = _signal_noise(a), _signal_noise(b)
    weights = _weights([level for level, _ in past], a, b, 1, middle)
    return spread_b / spread_a * x + signal_b * sum(w * x_hat for w, (_, x_hat) in zip(weights, past, strict=True))


def _noise_step(x: Tensor, a: float, b: float, past: Past) -> Tensor:
    """x_b = alpha_b/alpha_a x_a - alpha_b integral e^-lambda eps_hat dlambda (Lu et al. 2022a, eq. 3.4)."""
    (signal_a, spread_a), (signal_b, _) = _signal_noise(a), _signal_noise(b)
    weights = _weights([level for level, _ in past], a, b, -1, False)
    slope = sum(w * eps_hat for w, (_, eps_hat) in zip(weights, past, strict=True))
    return signal_b / signal_a * (x - spread_a * slope)


def _ddim_step(x: Tensor, a: float, b: float, eps_hat: Tensor) -> Tensor:
    """x_b = alpha_b/alpha_a (x_a - sigma_a eps_hat) + sigma_b eps_hat: either way, from and to clean data too."""
    (signal_a, spread_a), (signal_b, spread_b) = _signal_noise(a), _signal_noise(b)
    return signal_b / signal_a * (x - spread_a * eps_hat) + spread_b * eps_hat


def _orders(grid: Tensor, order: int) -> list[int]:
    """The order of every step: lower where too little is known yet, and towards clean data, reached in order 1."""
    steps = len(grid) - 1
    ends = math.isinf(grid[-1])
    return [min(order, done + 1, steps - done if ends else order) for done in range(steps)]


def _multistep(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None, on_step: Callable[[], None], order: int,
               advance: Callable[[Tensor, float, float, Past], Tensor], of_data: bool) -> Tensor:
    """One call of the denoiser a step, and `advance` from its newest estimates, of the data or of the noise."""
    past: Past = []
    for (a, b), known in zip(pairwise(grid.tolist()), _orders(grid, order), strict=True):
        logsnr = _level(x, a)
        eps_hat = denoiser(x, logsnr, z)
        past = [(a, predict_x(x, logsnr, eps_hat) if of_data else eps_hat), *past[: order - 1]]
        x = advance(x, a, b, past[:known])
        on_step()
    return x


@torch.no_grad()
def dpmpp(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
          on_step: Callable[[], None] = silent) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second-order multistep, deterministic."""

    # x_b = sigma_b/sigma_a x_a - alpha_b (e^-h - 1) ((1 + 1/2r) x_hat_a - 1/2r x_hat_before), r = h_before/h
    def advance(x, a, b, past):
        return _data_step(x, a, b, past, middle=True)

    return _multistep(denoiser, x, grid, z, on_step, 2, advance, of_data=True)


@torch.no_grad()
def dpmpp3m(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
            on_step: Callable[[], None] = silent) -> Tensor:
    """DPM-Solver++(3M): the quadratic through the last three data estimates, integrated exactly, deterministic.

    Third order: x_b = sigma_b/sigma_a x_a + alpha_b (phi_1 x_hat + phi_2 h x_hat' + phi_3 h^2 x_hat''), phi_3 = 1/2 -
    (h - 1 + e^-h)/h^2. The authors' program, and diffusers, have half the last term: they are of second order.
    """

    def advance(x, a, b, past):
        return _data_step(x, a, b, past, middle=len(past) == 2)

    return _multistep(denoiser, x, grid, z, on_step, 3, advance, of_data=True)


@torch.no_grad()
def deis(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
         on_step: Callable[[], None] = silent, order: int = 3) -> Tensor:
    """DEIS (Zhang & Chen 2023, tAB-DEIS in log rho): the polynomial through the last noise estimates, integrated.

    x_b/alpha_b = x_a/alpha_a + sum_j C_j eps_hat_j, C_j = integral_rho_a^rho_b L_j(log rho) drho (eqs. 14 and 15)
    """
    return _multistep(denoiser, x, grid, z, on_step, order, _noise_step, of_data=False)


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@torch.no_grad()
def ipndm(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
          on_step: Callable[[], None] = silent, order: int = 4) -> Tensor:
    """Improved PNDM (Zhang & Chen 2023, after Liu et al. 2022, eq. 12): DDIM along a mean of noise estimates.

    eps_bar = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24 at order 4, and Adams and Bashforth's lower orders to start with;
    x_b = alpha_b/alpha_a (x_a - sigma_a eps_bar) + sigma_b eps_bar
    """

    past: list[Tensor] = []
    for a, b in pairwise(grid.tolist()):
        past = [denoiser(x, _level(x, a), z), *past[: order - 1]]
        known = 1 if math.isinf(b) else len(past)  # no extrapolation to clean data: it would end off the data
        mean = sum(w * eps_hat for w, eps_hat in zip(ADAMS_BASHFORTH[known - 1], past[:known], strict=True))
        x = _ddim_step(x, a, b, mean)
        on_step()
    return x


@torch.no_grad()
def unipc(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
          on_step: Callable[[], None] = silent, order: int = 3) -> Tensor:
    """UniPC of data estimates (Zhao et al. 2023, B(h) = e^h - 1): predict, and correct when known.

    UniP: x_b = sigma_b/sigma_a x_a + alpha_b (1 - e^-h) (x_hat_a + sum_j rho_j D_j/r_j), D_j = x_hat_j - x_hat_a
    UniC: the same step again with x_hat at its own end among the D_j, one order higher and without another call
    Their rho solve for the polynomial through the estimates; with one D_j they are 1/2, its value mid-step.
    """
    past: Past = []
    start = None  # x and log-SNR where the last step began, and the estimates that it used
    for (a, b), known in zip(pairwise(grid.tolist()), _orders(grid, order), strict=True):
        logsnr = _level(x, a)
        x_hat = predict_x(x, logsnr, denoiser(x, logsnr, z))
        if start is not None:
            before, level, used = start
            x = _data_step(before, level, a, [(a, x_hat), *used], middle=len(used) == 1)
        past = [(a, x_hat), *past[: order - 1]]
        start = x, a, past[:known]
        x = _data_step(x, a, b, past[:known], middle=known == 2)
        on_step()
    return x


@torch.no_grad()
def dpmpp_sde(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
              on_step: Callable[[], None] = silent) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, sec. 5): the reverse SDE, so that noise drawn on the way mends errors.

    x_b = sigma_b/sigma_a e^-h x_a + alpha_b (1 - e^-2h) (x_hat + (x_hat - x_hat_before)/2r) + sigma_b sqrt(1 - e^-2h) n
    """
    steps = iter(range(1, len(grid)))

    def advance(x, a, b, past):
        (_, spread_a), (signal_b, spread_b), h = _signal_noise(a), _signal_noise(b), (b - a) / 2
        mean = past[0][1]
        if len(past) == 2:
            level, before = past[1]
            mean = mean + (b - a) / (2 * (a - level)) * (mean - before)
        fresh = -math.expm1(-2 * h)
        noise = rng.at(next(steps)).normal("sampler", *x.shape[1:])
        return spread_b / spread_a * math.exp(-h) * x + signal_b * fresh * mean + spread_b * math.sqrt(fresh) * noise

    return _multistep(denoiser, x, grid, z, on_step, 2, advance, of_data=True)


def _one_slope(denoiser: Denoiser, x: Tensor, a: float, b: float, z: Tensor | None) -> Tensor:
    """The noise estimate that deterministic DDIM follows from a to b."""
    return denoiser(x, _level(x, a), z)


def _two_slopes(denoiser: Denoiser, x: Tensor, a: float, b: float, z: Tensor | None) -> Tensor:
    """The mean of the noise estimates at a and, where DDIM takes x, at b; clean data has no second one."""
    first = denoiser(x, _level(x, a), z)
    if math.isinf(b):
        return first
    return (first + denoiser(_ddim_step(x, a, b, first), _level(x, b), z)) / 2


@torch.no_grad()
def heun(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, rng: Rng | None = None,
         on_step: Callable[[], None] = silent) -> Tensor:
    """Heun's method (Karras et al. 2022, algorithm 1): second order, two calls a step, the last step one.

    x_b/alpha_b = x_a/alpha_a + (rho_b - rho_a) (eps_hat(x_a) + eps_hat(x'_b))/2, x'_b by one DDIM step
    """
    for a, b in pairwise(grid.tolist()):
        x = _ddim_step(x, a, b, _two_slopes(denoiser, x, a, b, z))
        on_step()
    return x


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp, "dpmpp3m": dpmpp3m, "dpmpp_sde": dpmpp_sde, "unipc": unipc,
            "deis": deis, "ipndm": ipndm, "heun": heun}
INVERTIBLE = {"ddim": _one_slope, "heun": _two_slopes}


@torch.no_grad()
def invert(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None = None, sampler: str = "ddim",
           iterations: int = 3, on_step: Callable[[], None] = silent) -> Tensor:
    """The x at grid[0] from which `sampler`, deterministic ddim or heun, arrives at `x`. [B, *shape] -> [B, *shape]

    Solves every step backwards. Its noise estimate is wanted at the arrival level b, which is not known yet, hence
    `iterations` rounds of the fixed point x_b = (alpha_b/alpha_a)(x_a - sigma_a e) + sigma_b e, e the estimate that the
    sampler follows from x_b; heun's is of second order and takes two calls a round.
    """
    slope = INVERTIBLE[sampler]
    levels = grid.tolist()[::-1]  # from +inf down to noise
    eps_hat = torch.zeros_like(x)
    for a, b in pairwise(levels):
        for _ in range(iterations):
            eps_hat = slope(denoiser, _ddim_step(x, a, b, eps_hat), b, a, z)
        x = _ddim_step(x, a, b, eps_hat)
        on_step()
    return x


# ---------------------------------------------------------------------------------------------------------------------
# A grid fitted to a denoiser

CANDIDATES = 64  # levels that a fitted grid chooses from
GROWTHS = (0.8, 0.9, 1.0, 1.1, 1.2)  # of an error, with every step after it


def _jumps(denoiser: Denoiser, x: Tensor, grid: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
    """By how much one DDIM step from each level of a grid to each later one misses, [K, K] float64; x's clean end.

    The reference passes every level, from x at the first, by Heun's method; a miss is a mean distance over samples.
    """
    levels, passed, slopes = grid.tolist(), [x], []
    for a, b in pairwise(levels):
        slopes.append(denoiser(passed[-1], _level(x, a), z))
        ahead = _ddim_step(passed[-1], a, b, slopes[-1])
        if not math.isinf(b):
            ahead = _ddim_step(passed[-1], a, b, (slopes[-1] + denoiser(ahead, _level(x, b), z)) / 2)
        passed.append(ahead)
    cost = torch.full((len(levels), len(levels)), math.inf, dtype=torch.float64)
    for i, slope in enumerate(slopes):
        for j in range(i + 1, len(levels)):
            miss = _ddim_step(passed[i], levels[i], levels[j], slope) - passed[j]
            cost[i, j] = miss.flatten(1).norm(dim=1).mean()
    return cost, passed[-1]


def cheapest_path(cost: Tensor, steps: int, growth: float = 1.0) -> list[int]:
    """The path 0 = i_0 < ... < i_steps = K - 1 of least cost [K, K], by dynamic programming (GITS, Chen et al. 2024).

    V_n(i) = min_j cost[i, j] + growth V_(n-1)(j), V_0 = 0 at the end and infinite elsewhere
    """
    total = torch.full_like(cost[0], math.inf)
    total[-1] = 0.0
    following = []
    for _ in range(steps):
        total, best = (cost + growth * total).min(1)
        following.append(best.tolist())
    path = [0]
    for best in reversed(following):
        path.append(best[path[-1]])
    return path


def _refine(grid: Tensor, high: float, error_of: Callable[[Tensor], float]) -> Tensor:
    """A grid whose inner levels were moved part of the way to their neighbours wherever that lessens the error."""
    best = error_of(grid)
    for share in (1 / 2, 1 / 4, 1 / 8):
        for i in range(1, len(grid) - 1):
            for neighbour in (grid[i - 1].item(), min(grid[i + 1].item(), high)):
                trial = grid.clone()
                trial[i] += share * (neighbour - trial[i])
                if (error := error_of(trial)) < best:
                    grid, best = trial, error
    return grid


@torch.no_grad()
def fit_grid(denoiser: Denoiser, run: Callable[..., Tensor], x: Tensor, z: Tensor | None,
             grids: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """The grid of N steps on which a deterministic sampler ends nearest to a fine reference. -> [N + 1], errors

    run         the sampler, called with (denoiser, x, grid, z)
    x, z        the samples that are searched over, x [B, *shape] noise
    grids       name -> grid of N steps: they compete with the paths of least cost over CANDIDATES even log-SNRs
    The best of them is refined level by level. An error is the mean distance to the reference's clean end over its mean
    norm; 'fitted' is the returned grid's, and the least. About 2 CANDIDATES + 6 N^2 calls of the denoiser.
    """
    steps = len(next(iter(grids.values()))) - 1
    low, high = min(grid[0].item() for grid in grids.values()), max(grid[-2].item() for grid in grids.values())
    fine = even_grid(low, high, CANDIDATES)
    cost, end = _jumps(denoiser, x, fine, z)

    def error_of(grid: Tensor) -> float:
        distance = (run(denoiser, x, grid, z) - end).flatten(1).norm(dim=1)
        return (distance.mean() / end.flatten(1).norm(dim=1).mean()).item()

    tried = grids | {f"growth {growth:g}": fine[cheapest_path(cost, steps, growth)] for growth in GROWTHS}
    errors = {name: error_of(grid) for name, grid in tried.items()}
    fitted = _refine(tried[min(errors, key=errors.get)], high, error_of)
    return fitted, errors | {"fitted": error_of(fitted)}


# ---------------------------------------------------------------------------------------------------------------------
# Samples of a model


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

    options     eta or order, where the sampler takes it. Raises CommandError for an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise CommandError(f"unknown sampler '{sampler}' (known: {', '.join(SAMPLERS)})")
    x = rng.at(0).normal("x_T", *shape)
    return SAMPLERS[sampler](denoiser, x, grid, z, rng, on_step, **options)


def prior_of(model, rng: Rng) -> Tensor | None:
    """Each numbered sample's z from the model's prior, [B, a_dim]; None for a model without a latent.

    Raises CommandError for a model whose z comes with the data: nothing pulled that towards a prior.
    """
    if not hasattr(model, "latent"):
        return None
    if model.encoder is None:
        raise CommandError("z of this model comes with the data, and has no prior: give z")
    return model.latent.prior(rng.at(0))


def denoiser_of(model, guidance: float) -> Denoiser:
    return model.denoise if guidance == 1 else guided(model.denoise, guidance)


def steps_of(model, wanted: int | None, usual: int | None) -> int:
    """The steps of a sampler: those wanted, else its usual ones, else all of the model's schedule.

    Raises CommandError for more than the schedule has, or none.
    """
    most = model.schedule.steps
    if wanted is None:
        return min(usual or most, most)
    if not 1 <= wanted <= most:
        raise CommandError(f"{wanted} steps: the model's schedule has {most}, so give 1 to {most}")
    return wanted


def generate(model, rng: Rng, z: Tensor | None = None, sampler: str = Config.sampler, steps: int | None = None,
             spacing: str | None = None, guidance: float = 1.0, denoiser: Denoiser | None = None,
             grid: Tensor | None = None, on_step: Callable[[], None] = silent, **options: float) -> Tensor:
    """Samples of any model of models.py, for the numbered samples of `rng`. -> [B, *shape]

    z           what the samples are conditioned on; by default each sample's draw from the model's prior
    steps       of the sampler; by default its own number (config.SAMPLERS), or all of the model's schedule (`steps_of`)
    spacing     of its levels; by default its own
    denoiser    in place of the model's own (two-phase sampling)
    grid        in place of the one that steps and spacing name
    options     of the sampler: eta or order
    """
    z = prior_of(model, rng) if z is None else z
    if hasattr(model, "decode"):
        with torch.no_grad():
            return model.decode(z)
    denoiser = denoiser or denoiser_of(model, guidance)
    if grid is None:
        own = config.SAMPLERS.get(sampler, config.Sampler(""))
        grid = model.grid(steps_of(model, steps, own.steps), spacing or own.spacing)
    return sample(sampler, denoiser, rng, model.shape, grid, z, on_step, **options)
