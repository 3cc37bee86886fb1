"""Points whose density is known exactly: 2-D sets, a Gaussian mixture, and normal pairs with known mutual information.

Every distribution has mean 0 and variance 1 in each coordinate (by formula, not by sample), can be sampled, and knows
its log-density in nats:

    Mixture   sum_k pi_k N(m_k, S_k)                            mixture, scg, mvn
    Polyline  a uniform point of a polyline, plus N(0, s^2 I)   dino, moons, circle
    Square    uniform on a square                               line
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataset.base import Given, Spec

if TYPE_CHECKING:
    import torch

# ---------------------------------------------------------------------------------------------------------------------
# The three kinds of law


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture: weights pi [K], means m [K, n], covariances S [K, n, n], all float64."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def sample(self, rng: np.random.RandomState, count: int) -> np.ndarray:
        """float64 [count, n]"""
        which = rng.choice(len(self.weights), size=count, p=self.weights)
        roots = np.linalg.cholesky(self.covariances)  # [K, n, n]
        noise = rng.standard_normal((count, self.means.shape[1]))
        return self.means[which] + np.einsum("bij,bj->bi", roots[which], noise)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, n] -> log p(x) [B], float64, nats."""
        import torch

        means, covariances, weights = (
            torch.from_numpy(array).to(x.device) for array in (self.means, self.covariances, self.weights)
        )
        normals = torch.distributions.MultivariateNormal(means, covariances)
        return torch.logsumexp(normals.log_prob(x.double()[:, None]) + weights.log(), dim=1)

    def standardised(self) -> Mixture:
        """The law of each coordinate less its mean, over its deviation."""
        mean = self.weights @ self.means
        spread = np.einsum("k,kii->i", self.weights, self.covariances) + self.weights @ (self.means - mean) ** 2
        scale = np.sqrt(spread)
        return Mixture(self.weights, (self.means - mean) / scale, self.covariances / np.outer(scale, scale))


class Polyline:
    """A uniform point of a set of line segments, plus isotropic normal jitter.

    starts, ends   [S, 2] the segments, in any units: they are shifted and scaled so that a coordinate of the *sum* has
                   mean 0 and variance 1
    jitter         deviation of the noise after that scaling
    """

    def __init__(self, starts: np.ndarray, ends: np.ndarray, jitter: float):
        # Lengths weigh the segments, and scaling the axes changes lengths: a few rounds settle it.
        for _ in range(50):
            share = _lengths(starts, ends) / _lengths(starts, ends).sum()
            mean = share @ (starts + ends) / 2
            starts, ends = starts - mean, ends - mean
            variance = share @ (starts**2 + starts * ends + ends**2) / 3  # of a uniform point of a segment
            scale = np.sqrt((1 - jitter**2) / variance)
            starts, ends = starts * scale, ends * scale
        self.starts, self.ends, self.jitter = starts, ends, jitter
        self.share = _lengths(starts, ends) / _lengths(starts, ends).sum()

    def sample(self, rng: np.random.RandomState, count: int) -> np.ndarray:
        """float64 [count, 2]"""
        which = rng.choice(len(self.share), size=count, p=self.share)
        along = rng.random_sample((count, 1))
        point = (1 - along) * self.starts[which] + along * self.ends[which]
        return point + self.jitter * rng.standard_normal((count, 2))

    def log_density(self, x: torch.Tensor, chunk: int = 4096) -> torch.Tensor:
        """x [B, 2] -> log p(x) [B], float64, nats.

        p = sum over segments of  share / length * N(distance across) * (Phi(to the start) - Phi(to the end)).
        """
        import torch

        return torch.cat([self._log_density(part) for part in x.double().split(chunk)])

    def _log_density(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        from diffusion import log_normal_interval

        starts, ends, share = (torch.from_numpy(array).to(x.device) for array in (self.starts, self.ends, self.share))
        span = ends - starts
        length = span.norm(dim=1)  # [S]
        forward = span / length[:, None]
        offset = x[:, None] - starts  # [B, S, 2]
        along = (offset * forward).sum(-1)  # [B, S]
        across = offset[..., 0] * forward[:, 1] - offset[..., 1] * forward[:, 0]
        log_normal = -0.5 * (across / self.jitter) ** 2 - math.log(self.jitter) - 0.5 * math.log(2 * math.pi)
        within = log_normal_interval((along - length) / self.jitter, along / self.jitter)
        return torch.logsumexp(log_normal + within + (share / length).log(), dim=1)


class Square:
    """Uniform on the square of side sqrt(12), whose coordinates have variance 1: entropy log 12."""

    half = float(np.float32(math.sqrt(3.0)))  # so that a float32 sample is never outside

    def sample(self, rng: np.random.RandomState, count: int) -> np.ndarray:
        """float64 [count, 2]"""
        return rng.uniform(-self.half, self.half, (count, 2))

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 2] -> -log 12 inside, -infinity outside, [B], float64."""
        import torch

        inside = (x.abs() <= self.half).all(dim=1)
        outside = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        return outside.masked_fill(inside, -2.0 * math.log(2.0 * self.half))


def _lengths(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.linalg.norm(ends - starts, axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# The sets


def _arc(centre: tuple[float, float], first: float, last: float, pieces: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments [pieces, 2], [pieces, 2] of an arc of radius 1, angles in radians."""
    angle = np.linspace(first, last, pieces + 1)
    corners = np.stack([np.cos(angle), np.sin(angle)], axis=1) + centre
    return corners[:-1], corners[1:]


def _moons() -> Polyline:
    upper, lower = _arc((0.0, 0.0), 0.0, np.pi, 50), _arc((1.0, 0.5), np.pi, 2 * np.pi, 50)
    return Polyline(np.concatenate([upper[0], lower[0]]), np.concatenate([upper[1], lower[1]]), jitter=0.1)


# A long-necked dinosaur, seen from its left side: mouth, brow, neck, back, tail, four legs, chest, throat.
_DINO = np.array(
    [
        (0.0, 8.6), (0.1, 9.2), (0.8, 9.7), (1.7, 9.9), (2.4, 9.5), (2.8, 8.7), (2.9, 7.6), (3.1, 6.5), (3.7, 5.7),
        (4.7, 5.6), (5.9, 6.0), (7.2, 6.1), (8.4, 5.7), (9.4, 5.0), (10.5, 4.2), (11.8, 3.6), (13.2, 3.3), (14.6, 3.6),
        (13.3, 2.7), (11.8, 2.6), (10.4, 2.9), (9.5, 3.0), (9.3, 1.8), (9.4, 0.2), (8.2, 0.2), (8.0, 1.6), (7.6, 2.4),
        (6.6, 2.2), (5.6, 2.3), (5.2, 1.6), (5.2, 0.2), (4.0, 0.2), (3.9, 1.7), (3.4, 2.9), (2.4, 3.9), (1.8, 5.2),
        (1.6, 6.6), (1.5, 7.7), (1.2, 8.2), (0.6, 8.2),
    ]
)


def _smooth(corners: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Cut the corners of a closed polygon (Chaikin, 1974): [P, 2] -> [P * 2^rounds, 2]."""
    for _ in range(rounds):
        after = np.roll(corners, -1, axis=0)
        corners = np.stack([0.75 * corners + 0.25 * after, 0.25 * corners + 0.75 * after], axis=1).reshape(-1, 2)
    return corners


def _dino() -> Polyline:
    outline = _smooth(_DINO)
    return Polyline(outline, np.roll(outline, -1, axis=0), jitter=0.03)


def _scg() -> Mixture:
    """The strongly correlated Gaussian: covariance .5050 on the diagonal, -.4950 off it. Entropy 1.218489 nats."""
    covariance = np.array([[[0.5050, -0.4950], [-0.4950, 0.5050]]])
    return Mixture(np.ones(1), np.zeros((1, 2)), covariance).standardised()


def _turned(long: float, short: float, degrees: float) -> np.ndarray:
    """A 2-D covariance with deviations `long` and `short`, the long axis at an angle."""
    angle = math.radians(degrees)
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return axes @ np.diag([long**2, short**2]) @ axes.T


MIXTURE = Mixture(
    weights=np.array([0.35, 0.25, 0.25, 0.15]),
    means=np.array([[-2.0, 0.5], [1.5, 1.8], [1.6, -1.4], [-1.0, -2.2]]),
    covariances=np.stack(
        [_turned(0.9, 0.25, 60), _turned(0.7, 0.3, -30), _turned(0.5, 0.5, 0), _turned(0.8, 0.15, 10)]
    ),
).standardised()

LAWS = {
    "dino": _dino(),
    "moons": _moons(),
    "scg": _scg(),
    "line": Square(),
    "circle": Polyline(*_arc((0.0, 0.0), 0.0, 2 * np.pi, 100), jitter=0.05),
    "mixture": MIXTURE,
}

SPECS = tuple(
    Spec(name, 2, 1, None, width=96, depth=3, kind="points", exact=True, gives_z=name == "mvn")
    for name in (*LAWS, "mvn")
)
_COUNTS = {"train": 8_000, "val": 2_000, "test": 20_000}


def count(name: str, split: str) -> int:
    """How many points a split holds: 8,000, 2,000 and 20,000; scg trains on 20,000 as published."""
    return 20_000 if (name, split) == ("scg", "train") else _COUNTS[split]


def draw(spec: Spec, split: str) -> tuple[np.ndarray, Given | None]:
    """The points of a split, the same on every call: x float32 [N, n]; for `mvn` its z."""
    # The older generator: its numbers are frozen across versions of numpy.
    rng, number = np.random.RandomState(zlib.crc32(f"{spec.name}/{split}".encode())), count(spec.name, split)
    if not spec.gives_z:
        return LAWS[spec.name].sample(rng, number).astype(np.float32), None
    dim, covariance = spec.size, mvn_covariance(spec.size)
    values = Mixture(np.ones(1), np.zeros((1, 2 * dim)), covariance[None]).sample(rng, number).astype(np.float32)
    return values[:, :dim], given_normal(values, covariance, dim)


def law(name: str, dim: int = 2) -> Mixture | Polyline | Square:
    """The law of x."""
    if name == "mvn":
        return Mixture(np.ones(1), np.zeros((1, dim)), mvn_covariance(dim)[None, :dim, :dim])
    return LAWS[name]


# ---------------------------------------------------------------------------------------------------------------------
# Normal pairs with known mutual information


def mvn_covariance(dim: int) -> np.ndarray:
    """Covariance of (x, z), `dim` coordinates each, unit variances, every correlation one half: [2 dim, 2 dim]."""
    return 0.5 * np.eye(2 * dim) + 0.5


def given_normal(values: np.ndarray, covariance: np.ndarray, dim: int) -> Given:
    """z of jointly normal rows (x, z) [N, 2 dim], along the axes of its covariance given x, where it is independent.

    E(z|x) = S_zx S_x^-1 x,  Cov(z|x) = S_z - S_zx S_x^-1 S_xz
    """
    across = np.linalg.solve(covariance[:dim, :dim], covariance[:dim, dim:])  # S_x^-1 S_xz
    variances, axes = np.linalg.eigh(covariance[dim:, dim:] - covariance[dim:, :dim] @ across)
    x, z = values[:, :dim].astype(np.float64), values[:, dim:]
    logvar = np.tile(np.log(variances), (len(z), 1))
    return Given(z, gaussian_mutual_information(covariance, dim), normal=(x @ across @ axes, logvar, z @ axes))


def gaussian_mutual_information(covariance: np.ndarray, dim: int) -> float:
    """I(x; z) in nats of jointly normal (x, z), x being the first `dim` coordinates of the joint covariance.

    I = 1/2 log (det S_x det S_z / det S): Cover & Thomas, Elements of Information Theory, eq. 9.
    """
    x, z, both = (
        np.linalg.slogdet(part)[1] for part in (covariance[:dim, :dim], covariance[dim:, dim:], covariance)
    )
    return float(0.5 * (x + z - both))
