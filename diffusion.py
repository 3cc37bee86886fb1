"""The mathematics of the noise: the channel, its schedules, the Gaussian reference and the training objectives.

Every function takes the log-SNR, `logsnr` ("a" in the equations):

    x_noisy = sqrt(sigmoid(a)) x + sqrt(sigmoid(-a)) eps           (variance preserving; VDM, Kingma et al. 2021, eq. 1)

Schedules and moments are float64; the channel itself runs in the precision of the images.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from utils import CommandError

HIGHEST = 25.0  # log-SNR up to which float32 can represent the noise
LOWEST = -80.0  # log-SNR down to which e^-logsnr is finite in float32
FIRST = -10.2  # log-SNR from which samplers start at the lowest: of what is below, x_hat is the network's error times
# e^(-logsnr/2). DDPM's schedule ends here; diffusers' `lambda_min_clipped` is the same, -5.1 of half log-SNR

# ---------------------------------------------------------------------------------------------------------------------
# The channel


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to multiply with `like` [B, ...], in its precision."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def diffuse(x: Tensor, logsnr: Tensor, eps: Tensor) -> Tensor:
    """Noisy x at log-SNR. x, eps [B, *shape]; logsnr [B] -> [B, *shape]."""
    signal, noise = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
    return per_sample(signal, x) * x + per_sample(noise, x) * eps


def predict_x(x_noisy: Tensor, logsnr: Tensor, eps_hat: Tensor) -> Tensor:
    """The clean image that a noise estimate implies: sqrt(1 + e^-a) x_noisy - e^(-a/2) eps_hat."""
    return per_sample((1 + torch.exp(-logsnr)).sqrt(), x_noisy) * x_noisy - per_sample(
        torch.exp(-logsnr / 2), x_noisy
    ) * eps_hat


def log_normal_interval(low: Tensor, high: Tensor) -> Tensor:
    """log (Phi(high) - Phi(low)) for low < high, either of which may be infinite. [...] twice -> [...]

    Accurate in both tails: an interval above 0 is mirrored to below it, where log Phi keeps its digits.
    """
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return log_high + torch.log(-torch.expm1(log_low - log_high))


# ---------------------------------------------------------------------------------------------------------------------
# Schedules: discrete steps 1 .. T and their log-SNR


class Schedule:
    """A table of log-SNRs for the steps 1 .. T of a discrete diffusion, and its continuous inverse.

    betas           [T] float64, the variances of the steps (DDPM, Ho et al. 2020, sec. 2)
    logsnr_table    [T] float64, entry i is log(abar / (1 - abar)) after i + 1 steps: falling
    """

    def __init__(self, betas: Tensor):
        self.betas = betas.double()
        log_abar = torch.log1p(-self.betas).cumsum(0)
        self.logsnr_table = log_abar - torch.log(-torch.expm1(log_abar))
        self.steps = len(betas)
        self._tables = {self.logsnr_table.device: self.logsnr_table}

    def _table(self, device: torch.device) -> Tensor:
        """The table on a device, copied there once: a copy at every step would block the host."""
        if device not in self._tables:
            self._tables[device] = self.logsnr_table.to(device)
        return self._tables[device]

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """(lowest, highest) log-SNR that the discrete steps reach."""
        return self.logsnr_table[-1].item(), self.logsnr_table[0].item()

    def logsnr(self, step: Tensor) -> Tensor:
        """log-SNR at (fractional) steps >= 1: piecewise linear through the table, extended linearly at both ends."""
        place = step.double() - 1
        below = place.floor().long().clamp(0, self.steps - 2)
        table = self._table(step.device)
        return table[below] + (place - below) * (table[below + 1] - table[below])

    def step_of(self, logsnr: Tensor) -> Tensor:
        """The (fractional) step whose log-SNR this is: `logsnr`'s inverse, each element its own, float64."""
        table = self._table(logsnr.device)
        above = torch.searchsorted(-table, -logsnr.double()).clamp(1, self.steps - 1)
        share = (logsnr.double() - table[above - 1]) / (table[above] - table[above - 1])
        return above + share  # entry above - 1 is step `above`

    def grid(self, steps: int, spacing: str = "time") -> Tensor:
        """Log-SNRs for a sampler of that many steps, from noise to data: [steps + 1] float64, the last +inf.

        'time' spaces the discrete steps evenly, 'logsnr' their log-SNRs, 'karras' as `karras_grid`. A schedule that
        ends below log-SNR FIRST, as cosine ones do, is entered there. With steps = T and 'time' it is the table itself
        from there on, backwards, and then clean data.
        """
        low, high = self.logsnr_range
        if spacing != "time":
            return SPACINGS[spacing](max(low, FIRST), high, steps)
        places = torch.linspace(self.steps, 1, steps, dtype=torch.float64).round().long()
        levels = self.logsnr_table[places - 1].clamp(min=FIRST).unique()  # ascending: of those below it one is left
        return torch.cat([levels, torch.tensor([math.inf], dtype=torch.float64)])


def even_grid(low: float, high: float, steps: int) -> Tensor:
    """A sampler's grid of evenly spaced log-SNRs, and clean data: [steps + 1] float64."""
    return torch.cat([torch.linspace(low, high, steps, dtype=torch.float64), torch.tensor([math.inf]).double()])


def karras_grid(low: float, high: float, steps: int, rho: float = 7.0) -> Tensor:
    """Evenly spaced sigma^(1/rho), sigma = e^(-logsnr/2), and clean data (Karras et al. 2022, eq. 5)."""
    roots = torch.linspace(math.exp(-low / 2 / rho), math.exp(-high / 2 / rho), steps, dtype=torch.float64)
    return torch.cat([-2 * rho * roots.log(), torch.tensor([math.inf]).double()])


SPACINGS = {"logsnr": even_grid, "karras": karras_grid}


def linear_schedule(beta1: float, betaT: float, steps: int) -> Schedule:
    """Evenly spaced betas (DDPM, sec. 4). InfoDiffusion: 1e-5 .. 1e-2 over 1,000 steps."""
    return Schedule(torch.linspace(beta1, betaT, steps, dtype=torch.float64))


def cosine_schedule(steps: int) -> Schedule:
    """abar follows a squared cosine (Nichol & Dhariwal 2021, eq. 17), each beta at most .999."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return Schedule((1 - f[1:] / f[:-1]).clamp(max=0.999))


# ---------------------------------------------------------------------------------------------------------------------
# The Gaussian reference, from the data's first two moments


PLENTY = 5  # rows a dimension from which on the sample covariance is taken as it is
HELD_OUT = 4  # one row in so many chooses how much correlations are shrunk


class _Moments:
    """Count, sum and (outer or elementwise) squares of rows [B, d] float64, added up in one pass."""

    def __init__(self, full: bool):
        self.full, self.count, self.total, self.square = full, 0, 0.0, 0.0

    def add(self, rows: Tensor) -> None:
        self.count, self.total = self.count + len(rows), self.total + rows.sum(0)
        self.square = self.square + (rows.T @ rows if self.full else (rows**2).sum(0))

    def without(self, part: _Moments) -> _Moments:
        rest = _Moments(self.full)
        rest.count, rest.total, rest.square = (
            self.count - part.count, self.total - part.total, self.square - part.square)
        return rest

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    def covariance(self, mean: Tensor | None = None) -> Tensor:
        """Around the own mean, or the mean square around another. [d, d], or [d] of the diagonal alone."""
        own = self.mean
        product = torch.outer if self.full else torch.mul
        around = self.square / self.count - product(own, own)
        return around if mean is None else around + product(own - mean, own - mean)


def _pixel_variances(covariance: Tensor, rows: int) -> Tensor:
    """Variances from a few rows and one further row of the average variance: a pixel that happened to be constant in
    the rows there are is not certain to be. [d, d] -> [d]"""
    variances = covariance.diagonal()
    return ((rows * variances + variances.mean()) / (rows + 1)).clamp(min=1e-12)


def _shrunk(covariance: Tensor, rows: int, shrinkage: float) -> Tensor:
    """(1 - shrinkage) covariance + shrinkage diag(variances): correlations are shrunk toward none. [d, d]"""
    if shrinkage == 0:
        return covariance
    return (1 - shrinkage) * covariance + shrinkage * torch.diag(_pixel_variances(covariance, rows))


def _choose_shrinkage(fitted: _Moments, held_out: _Moments) -> float:
    """The shrinkage of correlations toward none with the highest likelihood of held-out rows (Warton, JASA 2008).

    Ledoit and Wolf's shrinkage minimises a squared error, which the few large eigenvalues of images decide; the many
    small ones decide a Gaussian's likelihood. Of both sets the moments suffice.
    """
    if fitted.count < 6:
        return 1.0
    mean, covariance = fitted.mean, fitted.covariance()
    scale = _pixel_variances(covariance, fitted.count).sqrt()
    values, basis = torch.linalg.eigh(covariance / torch.outer(scale, scale))
    seen = held_out.covariance(mean) / torch.outer(scale, scale)
    energy = ((seen @ basis) * basis).sum(0)  # [d]: the held-out mean square along each eigenvector
    tried = torch.cat([torch.zeros(1), torch.logspace(-4, 0, 33)]).double()[:, None]
    spectrum = ((1 - tried) * values + tried).clamp(min=1e-6)  # [tried, d]
    return tried[(energy / spectrum + spectrum.log()).sum(1).argmin()].item()


@dataclass(frozen=True)
class Gaussian:
    """N(mean, basis diag(variances) basis^T), the control variate of ITD and the source of its log-SNR range.

    mean        [d] float64
    variances   [d] float64, eigenvalues, floored
    basis       [d, d] eigenvectors in columns, or None for a diagonal covariance
    rows        how many rows it was estimated from, None where it is given and no estimate
    shrinkage   how far correlations were shrunk toward none, from 0 (the sample's own) to 1 (diagonal)
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor | None
    rows: int | None = None
    shrinkage: float = 0.0

    @classmethod
    def fit(cls, batches, lattice_step: float | None, full_up_to: int = 3072) -> Gaussian:
        """Moments of float batches [B, *shape] in one pass; the full covariance up to `full_up_to` dimensions.

        From fewer than 5 rows a dimension a full covariance is shrunk toward its diagonal, as far as one row in four,
        held out, asks for; otherwise it is the sample's own.

        lattice_step    spacing D of the values, which floors the eigenvalues at D^2 / 12; None: at 1e-6 of the largest
        """
        whole = held_out = None
        for batch in batches:
            rows = batch.flatten(1).double()
            if whole is None:
                dimensions = rows.shape[1]
                full = dimensions <= full_up_to
                whole, held_out = _Moments(full), _Moments(full)
            if full and whole.count < PLENTY * dimensions:
                held_out.add(rows[-whole.count % HELD_OUT :: HELD_OUT])  # rows 0, 4, 8 ... of all
            whole.add(rows)
        covariance, shrinkage = whole.covariance(), 0.0
        if full and whole.count < PLENTY * dimensions:
            shrinkage = _choose_shrinkage(whole.without(held_out), held_out)
            covariance = _shrunk(covariance, whole.count, shrinkage)
        variances, basis = torch.linalg.eigh(covariance) if full else (covariance, None)
        floor = lattice_step**2 / 12 if lattice_step else 1e-6 * variances.max().item()
        return cls(whole.mean, variances.clamp(min=floor), basis, whole.count, shrinkage)

    @property
    def is_weak(self) -> bool:
        """Whether a full covariance comes from fewer than 5 rows a dimension."""
        return self.basis is not None and self.rows is not None and self.rows < PLENTY * len(self.mean)

    def to(self, device) -> Gaussian:
        return replace(self, mean=self.mean.to(device), variances=self.variances.to(device),
                       basis=None if self.basis is None else self.basis.to(device))

    def state(self) -> dict:
        """Plain values for a checkpoint; the basis in float32, which its use is in."""
        basis = None if self.basis is None else self.basis.float()
        return {"mean": self.mean, "variances": self.variances, "basis": basis, "rows": self.rows,
                "shrinkage": self.shrinkage}

    @classmethod
    def from_state(cls, state: dict) -> Gaussian:
        """A checkpoint from before shrinkage tells neither rows nor shrinkage."""
        return cls(state["mean"], state["variances"], state["basis"], state.get("rows"), state.get("shrinkage", 0.0))

    def rotate(self, rows: Tensor) -> Tensor:
        """Coordinates along the eigenvectors. [B, d] -> [B, d]."""
        return rows if self.basis is None else rows @ self.basis.to(rows.dtype)

    def rotate_back(self, rows: Tensor) -> Tensor:
        return rows if self.basis is None else rows @ self.basis.to(rows.dtype).T

    @functools.cached_property
    def _single(self) -> Gaussian:
        """The same in float32, for the denoiser: cast once and not at every step."""
        basis = None if self.basis is None else self.basis.float()
        return replace(self, mean=self.mean.float(), variances=self.variances.float(), basis=basis)

    def denoise(self, x_noisy: Tensor, logsnr: Tensor, z: None = None) -> Tensor:
        """The Gaussian's own optimal denoiser (ITD, eq. 6): sqrt(s(-a)) (s(a) Sigma + s(-a) I)^-1 (x - sqrt(s(a)) mu).

        Follows the denoiser contract. [B, *shape], [B] -> [B, *shape].
        """
        own = self._single if x_noisy.dtype == torch.float32 else self
        a = logsnr[:, None].to(x_noisy.dtype)
        rows = own.rotate(x_noisy.flatten(1) - torch.sigmoid(a).sqrt() * own.mean)
        spread = torch.sigmoid(a) * own.variances + torch.sigmoid(-a)  # [B, d]
        return own.rotate_back(torch.sigmoid(-a).sqrt() * rows / spread).reshape(x_noisy.shape)

    def nll_nats(self, x: Tensor) -> Tensor:
        """-log N(x; mean, Sigma) in nats, float64. [B, *shape] -> [B]."""
        y = self.rotate(x.flatten(1).double() - self.mean)
        return 0.5 * (y**2 / self.variances + self.variances.log() + math.log(2 * math.pi)).sum(1)

    @property
    def loc(self) -> float:
        """Where the logistic over log-SNR is centred: minus the mean log-variance."""
        return -self.variances.log().mean().item()

    @property
    def scale(self) -> float:
        """Scale of the logistic with the variance of the spectrum's own: sqrt(1 + 3/pi^2 Var(log variance))."""
        return math.sqrt(1 + 3 / math.pi**2 * self.variances.log().var(unbiased=False).item())

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """Integration range [L, R], beyond which the Gaussian's error is negligible; R is limited by float32."""
        logs = self.variances.log()
        return -logs.max().item() - 8, min(-logs.min().item() + 8, HIGHEST)


# ---------------------------------------------------------------------------------------------------------------------
# How log-SNRs are drawn


@dataclass(frozen=True)
class LogSNRProposal:
    """A logistic over log-SNR truncated at [low, high], with a tenth of uniform mixed in so that weights stay bounded.

    Integral_low^high f(a) da = E[weight(a) f(a)] for a drawn from it; weight = 1 / density.
    """

    loc: float
    scale: float
    low: float
    high: float
    uniform: float = 0.1

    def draw(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Log-SNRs and their weights from numbers in (0, 1). [...] -> two [...]"""
        a = self.logsnr(unit)
        return a, self.weight(a)

    def logsnr(self, unit: Tensor) -> Tensor:
        """The log-SNRs alone. Equal intervals of the numbers are strata of the uniform and of the logistic part."""
        u = unit.double()
        p_low, p_high = self._cdf(self.low), self._cdf(self.high)
        flat = self.low + (self.high - self.low) * u / self.uniform
        p = p_low + (p_high - p_low) * ((u - self.uniform) / (1 - self.uniform)).clamp(0, 1)
        logistic = self.loc + self.scale * torch.logit(p)
        return torch.where(u < self.uniform, flat, logistic).clamp(self.low, self.high)

    def weight(self, logsnr: Tensor) -> Tensor:
        v = (logsnr - self.loc) / self.scale
        kept = self._cdf(self.high) - self._cdf(self.low)
        logistic = torch.sigmoid(v) * torch.sigmoid(-v) / (self.scale * kept)
        return 1 / ((1 - self.uniform) * logistic + self.uniform / (self.high - self.low))

    def _cdf(self, a: float) -> float:
        return 0.5 * (1 + math.tanh((a - self.loc) / (2 * self.scale)))  # the logistic's, which cannot overflow


def proposal_for(gaussian: Gaussian, loc: float | None = None, scale: float | None = None,
                 clip: float | None = None) -> LogSNRProposal:
    """The proposal that fits the data's spectrum; a value that is not None replaces the data's.

    Raises CommandError where the logistic's centre is outside the range.
    """
    loc = gaussian.loc if loc is None else loc
    scale = gaussian.scale if scale is None else scale
    low, high = gaussian.logsnr_range if clip is None else (loc - clip * scale, min(loc + clip * scale, HIGHEST))
    if not low < loc < high:
        raise CommandError(f"--logsnr_loc {loc:g} is outside the range of log-SNR, {low:.4g} to {high:.4g}")
    return LogSNRProposal(loc, scale, low, high)


# ---------------------------------------------------------------------------------------------------------------------
# Training objectives: a distribution over log-SNR, with weights


class SimpleObjective:
    """Mean squared noise error at uniformly drawn discrete steps (DDPM, eq. 14)."""

    unit = "mean squared error"

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.logsnr_range = schedule.logsnr_range

    def draw(self, unit: Tensor) -> Tensor:
        """[B] in (0, 1) -> log-SNR [B] float32."""
        step = (unit.double() * self.schedule.steps).floor() + 1
        return self.schedule.logsnr(step).float()

    def loss(self, x: Tensor, x_noisy: Tensor, logsnr: Tensor, eps: Tensor, eps_hat: Tensor) -> Tensor:
        """[B]: the squared error averaged over dimensions."""
        return (eps - eps_hat).float().square().flatten(1).mean(1)


class ITDObjective:
    """The likelihood bound from one log-SNR a sample, in nats (Kong et al. 2023, eq. 9, with a Gaussian reference)."""

    unit = "nats"

    def __init__(self, proposal: LogSNRProposal, gaussian: Gaussian):
        self.proposal, self.gaussian = proposal, gaussian
        self.logsnr_range = (proposal.low, proposal.high)

    def draw(self, unit: Tensor) -> Tensor:
        return self.proposal.logsnr(unit).float()

    def loss(self, x: Tensor, x_noisy: Tensor, logsnr: Tensor, eps: Tensor, eps_hat: Tensor) -> Tensor:
        """[B] nats: -log N(x; mu, Sigma) + weight/2 (|eps - eps_hat|^2 - |eps - eps_G|^2)."""
        error = (eps - eps_hat).float().square().flatten(1).sum(1)
        reference = (eps - self.gaussian.denoise(x_noisy, logsnr)).square().flatten(1).sum(1)
        weight = self.proposal.weight(logsnr.double()).float()
        return self.gaussian.nll_nats(x).float() + 0.5 * weight * (error - reference)
