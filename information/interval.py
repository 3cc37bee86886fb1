"""An interval that contains I(x; z), from codes alone: no denoiser, seconds.

z has a known distribution given x: a normal (a stochastic encoder; a deterministic one with noise of deviation tau) or
a symmetric channel over classes. With q(z|x) known, H(z|x) is exact and what is bounded is the law of z:

    lower   mean log [ q(z_i|x_i) / (1/N sum_j q(z_i|x_j)) ], row i among the N: never much above log N
            (InfoNCE with the exact critic: van den Oord et al. 2018; Poole et al. 2019, eq. 13)
    upper   the least of
            left-out    the same with all rows but i, those of other splits among them (Poole et al. 2019, eq. 11)
            mixture     cross-entropy of z under a density fitted to other rows, minus H(z|x): a Gaussian mixture, its
                        size chosen on validation rows; for classes, smoothed `frequencies`
            capacity    the same with one Gaussian of the other rows' moments, integrated exactly; for classes, of the
                        symmetric channel
            rate        E KL(q(z|x) || p(z)) (Alemi et al. 2018)

All are bounds in expectation over (x, z), whatever the encoder; the interval is [lower - 2 SE, upper + 2 SE].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dataset.given import channel_entropy
from information.likelihood import Mean, average
from rng import Rng
from utils import CommandError

FEWEST, FEW = 30, 90  # rows under which there is no interval; under which it misses more often than 2 SE say
SATURATION = 1.0  # nats below log N within which the lower bound says little
PAIRS = 1 << 22  # pairs of rows compared at once
SIZES = (1, 2, 4, 8, 16, 32)  # components of a Gaussian mixture
FITTED_ROWS = 10_000  # draws that a mixture is fitted to


@dataclass(frozen=True)
class Normals:
    """N rows of a normal q(z|x_i) = N(mean_i, diag e^logvar_i) and one draw of each; [N, d] float64 three times."""

    mean: Tensor
    logvar: Tensor
    z: Tensor

    @classmethod
    def draw(cls, mean: Tensor, logvar: Tensor, seed: int, stream: str = "z") -> Normals:
        """mean [N, d]; logvar [N, d] or [d]. z is a function of (seed, row, stream)."""
        mean = mean.double()
        logvar = logvar.double().expand_as(mean)
        noise = Rng(seed, torch.arange(len(mean), device=mean.device)).normal(stream, mean.shape[1])
        return cls(mean, logvar, mean + (logvar / 2).exp() * noise)

    def __len__(self) -> int:
        return len(self.z)

    def entry(self, d: int) -> Normals:
        """One entry of z alone."""
        return Normals(*(part[:, d : d + 1] for part in (self.mean, self.logvar, self.z)))

    def rows(self, rows) -> Normals:
        return Normals(self.mean[rows], self.logvar[rows], self.z[rows])

    def log_conditional(self) -> Tensor:
        """log q(z_i|x_i). [N]"""
        scaled = (self.z - self.mean) * (-self.logvar / 2).exp()
        return -0.5 * (scaled.square() + self.logvar + math.log(2 * math.pi)).sum(1)

    def entropy(self) -> Tensor:
        """H(z|x_i). [N]"""
        return 0.5 * (self.logvar + math.log(2 * math.pi * math.e)).sum(1)

    def log_pairs(self, others: Normals | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows [B], log q(z_i|x_j) [B, M]) for all rows i, j being all of the M others (these rows themselves)."""
        others = others or self
        centre = others.mean.mean(0)  # keeps the squares below small
        mean, z = others.mean - centre, self.z - centre
        shared = bool((others.logvar == others.logvar[0]).all())  # one product of matrices, not two
        precision = (-others.logvar[:1] if shared else -others.logvar).exp()
        constant = (mean.square() * precision + others.logvar + math.log(2 * math.pi)).sum(1)
        weighted = (precision * mean).T.contiguous()
        for rows in _chunks(self, others):
            squares = z[rows].square() @ precision.T  # [B, 1] or [B, M]
            yield rows, z[rows] @ weighted - 0.5 * (squares + constant)


@dataclass(frozen=True)
class Symbols:
    """N rows of classes sent through symmetric channels: right with probability 1 - error, else evenly any other.

    sent, z     [N, K] int64: what x determines, and what came out of the channel
    sizes       K numbers of values
    error       of every channel; `independent` z are those of another row, and say nothing about x
    """

    sent: Tensor
    z: Tensor
    sizes: tuple[int, ...]
    error: float = 0.0
    independent: bool = False

    @classmethod
    def draw(cls, sent: Tensor, sizes: tuple[int, ...], error: float = 0.0, independent: bool = False,
             seed: int = 0) -> Symbols:
        """sent [N, K] -> the same with z, a function of (seed, row)."""
        z = sent.roll(1, 0)  # rows in random order: the neighbour's say nothing
        if not independent:
            rng = Rng(seed, torch.arange(len(sent), device=sent.device))
            size = torch.tensor(sizes, device=sent.device)
            others = 1 + (rng.uniform("other", len(sizes)) * (size - 1)).long().clamp(max=size - 2)
            z = torch.where(rng.uniform("error", len(sizes)) < error, (sent + others) % size, sent)
        return cls(sent, z, sizes, error, independent)

    def __len__(self) -> int:
        return len(self.z)

    def rows(self, rows) -> Symbols:
        return replace(self, sent=self.sent[rows], z=self.z[rows])

    def _log(self, same: Tensor) -> Tensor:
        """log q(z|x) from what agrees. [..., K] bool -> [...]"""
        if self.independent:
            return torch.full(same.shape[:-1], -sum(map(math.log, self.sizes)), dtype=torch.float64)
        right = math.log(1 - self.error) if self.error < 1 else -math.inf
        others = torch.tensor([math.log(self.error / (size - 1)) if self.error > 0 and size > 1 else -math.inf
                               for size in self.sizes], dtype=torch.float64, device=same.device)
        return torch.where(same, torch.full_like(others, right), others).sum(-1)

    def log_conditional(self) -> Tensor:
        return self._log(self.z == self.sent)

    def entropy(self) -> Tensor:
        """H(z|x_i), the same for all rows. [N]"""
        nats = sum(map(math.log, self.sizes)) if self.independent else sum(
            channel_entropy(size, self.error) for size in self.sizes)
        return torch.full((len(self),), nats, dtype=torch.float64, device=self.z.device)

    def log_pairs(self, others: Symbols | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        others = others or self
        for rows in _chunks(self, others):
            yield rows, self._log(self.z[rows, None] == others.sent)

    @property
    def capacity(self) -> float:
        """log m - H(z|x) of each channel, summed: I(x; z) itself where what is sent is uniform."""
        return 0.0 if self.independent else sum(
            math.log(size) - channel_entropy(size, self.error) for size in self.sizes)


Rows = Normals | Symbols


def _chunks(rows: Rows, others: Rows) -> tuple[Tensor, ...]:
    return torch.arange(len(rows), device=rows.z.device).split(max(1, PAIRS // len(others)))


@dataclass(frozen=True)
class Bracket:
    """I(x; z) lies in [lower - 2 SE, upper + 2 SE].

    bounds      every upper bound by its name; `upper_by` names the least
    chosen_on   the rows on which the mixture's size was chosen, None where none was fitted
    count       rows among which z_i is looked for
    measured    rows that the upper bounds are means of, where these are fewer
    """

    lower: Mean
    bounds: dict[str, Mean]
    count: int
    chosen_on: str | None = None
    components: int | None = None
    measured: int | None = None

    @property
    def upper_by(self) -> str:
        return min(self.bounds, key=lambda name: self.bounds[name].mean + 2 * self.bounds[name].se)

    @property
    def upper(self) -> Mean:
        return self.bounds[self.upper_by]

    @property
    def log_n(self) -> float:
        return math.log(self.count)

    @property
    def saturated(self) -> bool:
        return self.lower.mean > self.log_n - SATURATION

    @property
    def ends(self) -> tuple[float, float]:
        """The interval: information is never negative."""
        return max(0.0, self.lower.mean - 2 * self.lower.se), max(0.0, self.upper.mean + 2 * self.upper.se)

    def record(self) -> dict:
        """As it stands in a result file."""
        return {
            "lower": self.lower.mean, "lower_se": self.lower.se, "saturated": self.saturated, "log_n": self.log_n,
            "upper": self.upper.mean, "upper_se": self.upper.se, "upper_by": self.upper_by, "interval": self.ends,
            "chosen_on": self.chosen_on, "components": self.components, "rows": self.count,
            "measured_rows": self.measured or self.count, "few": (self.measured or self.count) < FEW,
            "upper_bounds": {name: bound._asdict() for name, bound in self.bounds.items()},
        }

    def text(self) -> str:
        """One line for a person."""
        low, high = self.ends
        note = ", saturated: the lower end says little" if self.saturated else ""
        return f"{low:.2f} .. {high:.2f} nats (log N {self.log_n:.2f}{note}; upper end by {self.upper_by})"


def bracket(measured: Rows, fit: Rows | None = None, choose: Rows | None = None, *, tested: Rows | None = None,
            rate: Tensor | None = None, chosen_on: str | None = "val", seed: int = 0) -> Bracket:
    """The interval of I(x; z).

    measured    the rows that I is an average over
    fit         other rows of the same law, which mixture and capacity are fitted to
    choose      rows apart from both, on which the size of the mixture is chosen
    tested      where `fit` and `choose` are rows of `measured`: the rest of these, which fitted bounds are taken over
    rate        [N] KL(q(z|x) || p(z)), where the prior p(z) has one
    chosen_on   what `choose` is called in the record
    Raises CommandError for fewer than FEWEST rows, of which standard errors say little.
    """
    count = len(measured if tested is None else tested)
    if count < FEWEST:
        raise CommandError(f"an interval of I(x; z) needs {FEWEST} measured rows or more, not {count}: raise "
                           "--num_images, or take a larger --split or file")
    noise = mean_zero(measured)
    included, left_out = against_others(measured, fit if tested is None else None)
    bounds = {"left-out": controlled(left_out, noise)}
    if rate is not None:
        bounds["rate"] = average(rate)
    fitted, components = {}, None
    if isinstance(measured, Symbols):
        bounds["capacity"] = Mean(measured.capacity, 0.0)
        fitted = {"frequencies": against_frequencies(measured if tested is None else tested, fit)} if fit else {}
    elif fit is not None:
        fitted, components = against_fitted(measured if tested is None else tested, fit, choose, seed)
    bounds = {name: bound for name, bound in (bounds | fitted).items() if math.isfinite(bound.mean)}
    return Bracket(controlled(included, noise), bounds, len(measured), chosen_on if components else None, components,
                   measured=count)


def against_fitted(tested: Normals, fit: Normals, choose: Normals, seed: int) -> tuple[dict[str, Mean], int]:
    """The bounds by densities fitted to other rows, and the number of components of the mixture."""
    mixture, components = fit_mixture(fit, choose, seed)
    crossed = controlled(-tested.entropy() - mixture(tested.z), mean_zero(tested))
    return {"capacity": capacity(tested, fit), "mixture": crossed}, components


def mean_zero(rows: Rows) -> Tensor:
    """log q(z_i|x_i) minus its expectation over z_i: a control variate. [N]"""
    return rows.log_conditional() + rows.entropy()


def controlled(values: Tensor, noise: Tensor) -> Mean:
    """The mean of [N] values with [N] `noise` of mean zero as control variate (Owen 2013, sec. 8.9)."""
    centred = noise - noise.mean()
    variance = centred.square().sum()
    if not (variance > 0 and torch.isfinite(values).all()):
        return average(values)
    return average(values - (centred @ (values - values.mean()) / variance) * noise)


def against_others(rows: Rows, more: Rows | None = None) -> tuple[Tensor, Tensor]:
    """log q(z_i|x_i) - log mean_j q(z_i|x_j), row i among the j; and left out, `more` rows beside. -> [N] twice"""
    mine, count = rows.log_conditional(), len(rows)
    included, left_out = [], []
    for own, logs in rows.log_pairs():
        included.append(torch.logsumexp(logs, 1) - math.log(count))
        logs[torch.arange(len(own), device=own.device), own] = -math.inf
        left_out.append(torch.logsumexp(logs, 1))
    rest = torch.cat(left_out)
    if more is not None:
        rest = torch.logaddexp(rest, torch.cat([torch.logsumexp(logs, 1) for _, logs in rows.log_pairs(more)]))
        count += len(more)
    return mine - torch.cat(included), mine - rest + math.log(count - 1)


def exact(rows: Rows, population: Rows) -> Mean:
    """I(x; z) itself where x is uniform over a finite population whose q(z|x) are all known.

    rows    drawn from the population, with their z
    """
    mixed = torch.cat([torch.logsumexp(logs, 1) for _, logs in rows.log_pairs(population)])
    return controlled(rows.log_conditional() - mixed + math.log(len(population)), mean_zero(rows))


def capacity(measured: Normals, fit: Normals) -> Mean:
    """Cross-entropy of z under the Gaussian of the other rows' moments, minus H(z|x), integrated over the noise.

    With moments known it is 1/2 log det(I + Sigma / tau^2), the Gaussian channel's capacity (Cover & Thomas 2006,
    sec. 9.4); with estimated ones it remains a bound, being held out.
    """
    variances = fit.logvar.exp().mean(0)
    centred = fit.mean - fit.mean.mean(0)
    covariance = centred.T @ centred / len(centred) + torch.diag(variances)
    inverse = torch.linalg.inv(covariance)
    offset = measured.mean - fit.mean.mean(0)
    squares = ((offset @ inverse) * offset).sum(1) + measured.logvar.exp() @ inverse.diagonal()
    dimensions = measured.z.shape[1]
    crossed = 0.5 * (torch.logdet(covariance) + dimensions * math.log(2 * math.pi) + squares)
    return average(crossed - measured.entropy())


def fit_mixture(fit: Normals, choose: Normals, seed: int = 0):
    """A Gaussian mixture of z: (log density [N, d] -> [N], number of components), the size chosen on other rows.

    Few rows are used several times, with fresh noise.
    """
    from sklearn.mixture import GaussianMixture

    copies = max(1, min(8, FITTED_ROWS // len(fit)))
    draws = torch.cat([Normals.draw(fit.mean, fit.logvar, seed, f"copy {k}").z for k in range(copies)])[:FITTED_ROWS]
    centre, deviation = draws.mean(0), draws.std(0).clamp(min=1e-12)
    scaled, others = (((z - centre) / deviation).cpu().numpy() for z in (draws, choose.z))
    best, worse = None, 0
    for size in SIZES:
        if len(scaled) < 2 * size or worse == 2:
            break
        mixture = GaussianMixture(size, reg_covar=1e-4, tol=1e-3, max_iter=100, random_state=seed)
        mixture.fit(scaled)
        score = mixture.score(others)
        worse = worse + 1 if best and score <= best[0] else 0
        if best is None or score > best[0]:
            best = score, mixture, size
    _, mixture, size = best

    def log_density(z: Tensor) -> Tensor:
        scaled = ((z - centre) / deviation).cpu().numpy()
        return torch.from_numpy(mixture.score_samples(scaled)).to(z.device) - deviation.log().sum()

    return log_density, size


def against_frequencies(tested: Symbols, fit: Symbols) -> Mean:
    """Cross-entropy of z under smoothed frequencies (Laplace: one more of each value), minus H(z|x)."""
    values = int(np.prod(tested.sizes))
    number = np.ravel_multi_index(fit.z.T.cpu().numpy(), tested.sizes)
    wanted = np.ravel_multi_index(tested.z.T.cpu().numpy(), tested.sizes)
    seen = np.bincount(number, minlength=values)[wanted]
    logs = torch.from_numpy(np.log((seen + 1) / (len(number) + values))).to(tested.z.device)
    return controlled(-tested.entropy() - logs, mean_zero(tested))


# ---------------------------------------------------------------------------------------------------------------------
# Consistency


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


def check_order(label: str, found: Bracket) -> Check:
    """The two ends are bounds of one number."""
    low, high = found.ends
    return Check(f"lower - 2 SE <= upper + 2 SE ({label})", low <= high, f"{low:.3f} against {high:.3f} nats")


def check_usable(label: str, usable: Mean, found: Bracket) -> Check:
    """What a denoiser uses of z is no more than there is, if the denoiser is near ideal."""
    allowed = found.upper.mean + 2 * math.hypot(usable.se, found.upper.se)
    return Check(f"usable <= upper + 2 SE ({label})", usable.mean <= allowed,
                 f"{usable.mean:.3f} against {allowed:.3f} nats")


def check_taus(taus: Sequence[float], found: Sequence[Bracket]) -> Check:
    """More noise on z never adds information: neither bound may rise with tau by more than 2 SE."""
    order = sorted(range(len(taus)), key=lambda i: taus[i])
    scores = []
    for fine, coarse in pairwise(order):
        for pick in (lambda b: b.lower, lambda b: b.upper):
            one, other = pick(found[fine]), pick(found[coarse])
            scores.append(((other.mean - one.mean) / max(math.hypot(one.se, other.se), 1e-12), taus[coarse]))
    score, tau = max(scores)
    return Check("a larger tau raises neither bound", score <= 2, f"largest rise: {score:.2f} SE, at tau {tau:g}")
