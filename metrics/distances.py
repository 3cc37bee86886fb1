"""Distances between two sets of features: arrays in, numbers out, in float64; each with an error by resampling.

* `Moments`, `frechet_distance`: means and covariances, streamed. FID: Heusel et al. 2017, "GANs Trained by a Two
  Time-Scale Update Rule".
* `Resampled`, `jackknife`, `extrapolated`: errors, and what a finite number of images adds to a distance.
* `kernel_distance`: KID. Binkowski et al. 2018, "Demystifying MMD GANs".
* `neighbour_scores`: precision and recall (Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric"), density
  and coverage (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics").
* `Nearest`: the nearest of many rows that stream by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

import distributed

BLOCKS = 10  # of the jackknife
MANIFOLD_K, COVERAGE_K = 3, 5  # neighbours of precision and recall, of density and coverage: those of the papers
ROWS = 500  # rows of a matrix of pairs that are held at once


class Moments:
    """Mean and covariance of rows that stream by, in float64. Memory depends on the dimensions alone.

    Batches are joined by the update of Chan, Golub and LeVeque (1983), which loses no digits to a large mean. Rows are
    gathered to a few hundred before each update, since the update costs dims^2 whatever the number of rows.
    """

    GATHER = 512

    def __init__(self, dims: int):
        self._count, self._mean, self._scatter = 0, np.zeros(dims), np.zeros((dims, dims))
        self._pending: list[np.ndarray] = []

    def update(self, features: np.ndarray) -> None:
        """Add rows, [N, dims] of any float type."""
        self._pending.append(np.asarray(features, dtype=np.float64))
        if sum(map(len, self._pending)) >= self.GATHER:
            self._settle()

    def merge(self, other: Moments) -> None:
        """Add all rows of `other`, which another process may have gathered."""
        other._settle()
        self._settle()
        self._absorb(other._count, other._mean, other._scatter)

    def share(self) -> None:
        """Become the moments of the rows of all processes (torchrun's); every process has them then."""
        if distributed.world() < 2:
            return
        self._settle()
        counts = distributed.total(torch.tensor(self._count, dtype=torch.float64)).item()
        mean = distributed.total(torch.from_numpy(self._mean * self._count)).numpy() / max(counts, 1)
        delta = self._mean - mean
        scatter = self._scatter + np.outer(delta, delta * self._count)
        self._count, self._mean = int(counts), mean
        self._scatter = distributed.total(torch.from_numpy(scatter)).numpy()

    def without(self, part: Moments) -> Moments:
        """The moments of the rows that are not in `part`, whose rows must all be in here."""
        part._settle()
        self._settle()
        rest = Moments(len(self._mean))
        rest._count = self._count - part._count
        rest._mean = (self._count * self._mean - part._count * part._mean) / rest._count
        delta = part._mean - rest._mean
        shift = rest._count * part._count / self._count
        rest._scatter = self._scatter - part._scatter - shift * np.outer(delta, delta)
        return rest

    @property
    def count(self) -> int:
        """Rows seen."""
        self._settle()
        return self._count

    @property
    def mean(self) -> np.ndarray:
        """[dims]"""
        self._settle()
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """[dims, dims], unbiased (divided by count - 1). Raises ValueError with fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows, not {self._count}")
        return self._scatter / (self._count - 1)

    def _settle(self) -> None:
        if self._pending:
            rows = np.concatenate(self._pending)
            self._pending = []
            if len(rows):
                mean = rows.mean(axis=0)
                self._absorb(len(rows), mean, (rows - mean).T @ (rows - mean))

    def _absorb(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self._count + count
        delta = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(delta, delta * (self._count * count / max(total, 1)))
        self._mean = self._mean + delta * (count / max(total, 1))
        self._count = total


def frechet_distance(mu1: np.ndarray, cov1: np.ndarray, mu2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Frechet distance of N(mu1, cov1) and N(mu2, cov2), Heusel et al. 2017, eq. 6:

        |mu1 - mu2|^2 + tr(cov1) + tr(cov2) - 2 tr sqrt(cov1 cov2)

    With cov = S S^T the eigenvalues of cov1 cov2 are the squared singular values of S1^T S2, so that the last trace is
    the sum of these singular values: no matrix square root, and no complex numbers.

    mu [d], cov [d, d] symmetric and positive semidefinite, of any rank. Raises ValueError where a value is not finite.
    """
    arrays = [np.asarray(array, dtype=np.float64) for array in (mu1, cov1, mu2, cov2)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("means or covariances hold values that are not finite")
    mu1, cov1, mu2, cov2 = arrays
    product = _factor(cov1).T @ _factor(cov2)  # [rank1, rank2]
    if product.shape == cov1.shape:
        # Squaring loses half of the digits of small singular values. In the sum it matters only where they should be
        # zero, and it is four times as fast: so it is the way for full rank, and for full rank alone.
        singular = np.sqrt(np.linalg.eigvalsh(product.T @ product).clip(min=0))
    else:
        singular = scipy.linalg.svdvals(product)
    difference = mu1 - mu2
    return float(difference @ difference + np.trace(cov1) + np.trace(cov2) - 2 * singular.sum())


def _factor(cov: np.ndarray) -> np.ndarray:
    """S [d, rank] with S S^T = cov: Cholesky with pivoting, which stops where only rounding errors are left."""
    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(cov, lower=1)
    factor = np.empty((len(cov), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor


@dataclass(frozen=True)
class Resampled:
    """A number, its standard error, and the bias that a finite number of images gives it (to first order)."""

    value: float
    se: float | None
    bias: float | None = None


def leaving_out(values: np.ndarray) -> float:
    """Standard error from a statistic's values [B], each with one of B equal blocks left out (Efron and Stein 1981)."""
    return float(np.sqrt((len(values) - 1) * np.var(values)))


def jackknife(blocks: Sequence[Moments], statistic: Callable[[Moments], float]) -> Resampled:
    """`statistic` of all rows, with error and bias by the delete-a-block jackknife, blocks of equal size.

    One evaluation of `statistic` a block; no features need to be kept. What all deletions share, such as the bias of
    FID in the number of images, cancels in the error. Of a single block there is neither error nor bias.
    """
    whole = joined(blocks)
    value = statistic(whole)
    if len(blocks) < 2:
        return Resampled(value, None)
    values = np.array([statistic(whole.without(block)) for block in blocks])
    return Resampled(value, leaving_out(values), float((len(blocks) - 1) * (values.mean() - value)))


def joined(blocks: Sequence[Moments]) -> Moments:
    """The moments of the rows of all blocks."""
    whole = Moments(len(blocks[0].mean))
    for block in blocks:
        whole.merge(block)
    return whole


def extrapolated(blocks: Sequence[Moments], statistic: Callable[[Moments], float]) -> Resampled:
    """`statistic` in the limit of infinitely many rows: linear in 1/N, from all rows and from about half of them.

    Chong and Forsyth 2020, "Effectively Unbiased FID and Inception Score", eq. 4. Halves are windows of neighbouring
    blocks, the last beside the first, so that each block counts alike. The error is the jackknife's.
    """
    values = np.array([_limit([*blocks[:k], *blocks[k + 1 :]], statistic) for k in range(len(blocks))])
    return Resampled(_limit(blocks, statistic), leaving_out(values))


def _limit(blocks: Sequence[Moments], statistic: Callable[[Moments], float]) -> float:
    count, half = len(blocks), len(blocks) // 2
    windows = [joined([blocks[(start + k) % count] for k in range(half)]) for start in range(count)]
    whole, part = statistic(joined(blocks)), float(np.mean([statistic(window) for window in windows]))
    # f(n) = limit + slope / n at n = count and n = half
    return whole - (part - whole) * half / (count - half)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs of rows


def kernel_distance(reference: np.ndarray, measured: np.ndarray, blocks: int = BLOCKS) -> Resampled:
    """Unbiased squared MMD of the kernel k(x, y) = (x.y / dims + 1)^3, Binkowski et al. 2018, eq. 4 and section 4: KID.

    Of all rows of reference [N1, dims] and measured [N2, dims], where it is usual to average over random subsets of
    1,000: the same expectation, less scatter, and no draw. The error is the jackknife's over `blocks` of the measured
    rows, the reference held fixed; None with fewer than two rows a block. Raises ValueError with fewer than two rows.
    """
    x, y = _double(reference, measured)
    if min(len(x), len(y)) < 2:
        raise ValueError("a kernel distance needs two rows on either side")
    within_x = sum(_kernel(x[rows], x).sum() for rows in _chunks(len(x))) - _kernel_diagonal(x).sum()
    blocks = blocks if len(y) >= 2 * blocks else 1
    y, starts = _by_block(y, blocks)
    pairs, between = np.zeros((blocks, blocks)), np.zeros(blocks)  # sums over y y' and over x y, by the blocks of y
    for rows in _chunks(len(y)):
        sums = np.add.reduceat(_kernel(y[rows], y), starts, axis=1)  # [rows, blocks]
        own = np.searchsorted(starts, np.arange(rows.start, rows.stop), side="right") - 1
        np.add.at(pairs, own, sums)
        np.add.at(between, own, _kernel(y[rows], x).sum(axis=1))
    sizes = np.diff([*starts, len(y)])
    pairs[np.diag_indices(blocks)] -= np.add.reduceat(_kernel_diagonal(y), starts)

    def value(kept: np.ndarray) -> float:
        count = sizes[kept].sum()
        within_y = pairs[np.ix_(kept, kept)].sum() / (count * (count - 1))
        return within_x / (len(x) * (len(x) - 1)) + within_y - 2 * between[kept].sum() / (count * len(x))

    return _by_leaving_out(value, blocks)


def _by_leaving_out(value: Callable[[np.ndarray], float], blocks: int) -> Resampled:
    """`value` of the numbers of all blocks, with the jackknife's error where there are blocks to leave out."""
    everything = np.arange(blocks)
    if blocks < 2:
        return Resampled(float(value(everything)), None)
    values = np.array([value(np.delete(everything, k)) for k in range(blocks)])
    return Resampled(float(value(everything)), leaving_out(values))


def _double(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS))


def _by_block(rows: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their blocks, which are interleaved (row k is of block k mod blocks); each block's start."""
    parts = [rows[k::blocks] for k in range(blocks)]
    return np.concatenate(parts), np.cumsum([0, *map(len, parts[:-1])])


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    linear = a @ b.T / a.shape[1] + 1
    return linear * linear * linear  # [A, B]; a tenth of the time of ** 3


def _kernel_diagonal(x: np.ndarray) -> np.ndarray:
    return ((x * x).mean(axis=1) + 1) ** 3


def neighbour_scores(reference: np.ndarray, measured: np.ndarray, blocks: int = BLOCKS) -> dict[str, Resampled]:
    """Precision and recall (k = 3), density and coverage (k = 5), by balls that reach to the k-th nearest neighbour.

    precision   measured rows in a ball of a reference row         Kynkaanniemi et al. 2019, eq. 1
    recall      reference rows in a ball of a measured row         the same, sides exchanged
    density     reference balls around a measured row, over k      Naeem et al. 2020, eq. 4
    coverage    reference balls with a measured row in them        Naeem et al. 2020, eq. 5

    reference [N1, dims], measured [N2, dims]. Errors are the jackknife's over blocks of the measured rows, the
    reference held fixed. All four depend on the numbers of rows. Raises ValueError with fewer than 12 on a side.
    """
    real, fake = _double(reference, measured)
    if min(len(real), len(fake)) < 2 * (COVERAGE_K + 1):
        raise ValueError(f"neighbours need {2 * (COVERAGE_K + 1)} rows on either side")
    real, fake = real - real.mean(axis=0), fake - real.mean(axis=0)  # so that fewer digits cancel in |x - y|^2
    blocks = blocks if len(fake) >= 2 * blocks else 1
    fake, starts = _by_block(fake, blocks)
    manifold, wider = radii(real, (MANIFOLD_K, COVERAGE_K))
    own = _radii_leaving_out(fake, starts, MANIFOLD_K)  # [1 + blocks, N2]
    hit, balls = np.zeros(len(fake), bool), np.zeros(len(fake))
    covered, recalled = np.zeros((len(real), blocks), bool), np.zeros((len(real), len(own)), bool)
    for rows in _chunks(len(real)):
        squares = _squares(real[rows], fake)  # [rows, N2]
        hit |= (squares <= manifold[rows, None]).any(axis=0)
        inside = squares <= wider[rows, None]
        balls += inside.sum(axis=0)
        covered[rows] = np.logical_or.reduceat(inside, starts, axis=1)
        for k, reach in enumerate(own):
            recalled[rows, k] = (squares <= reach).any(axis=1)
    sizes = np.diff([*starts, len(fake)])

    def average(values: np.ndarray) -> Resampled:
        sums = np.add.reduceat(values.astype(float), starts)
        return _by_leaving_out(lambda kept: sums[kept].sum() / sizes[kept].sum(), blocks)

    shares = recalled.mean(axis=0)
    return {
        "precision": average(hit),
        "recall": Resampled(float(shares[0]), leaving_out(shares[1:]) if blocks > 1 else None),
        "density": average(balls / COVERAGE_K),
        "coverage": _by_leaving_out(lambda kept: covered[:, kept].any(axis=1).mean(), blocks),
    }


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|^2 [A, B]; zero where only rounding is left, so that equal rows are at no distance."""
    sizes = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    squares = sizes - 2 * (a @ b.T)
    squares[squares < 1e-11 * sizes] = 0
    return squares


def radii(x: np.ndarray, ks: Sequence[int]) -> list[np.ndarray]:
    """Squared distance of each row [N, dims] to its k-th nearest other row, for each k: [N] each."""
    found = np.empty((len(ks), len(x)))
    for rows in _chunks(len(x)):
        squares = _squares(x[rows], x)
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = np.inf
        found[:, rows] = np.partition(squares, [k - 1 for k in ks], axis=1)[:, [k - 1 for k in ks]].T
    return list(found)


def _radii_leaving_out(x: np.ndarray, starts: np.ndarray, k: int) -> np.ndarray:
    """Squared distances to the k-th nearest other row, of all rows and with each block left out: [1 + blocks, N].

    The rows of a block that is left out reach nowhere: -1. Of a single block, only the first row is given.
    """
    ends = [*starts[1:], len(x)]
    near = np.full((len(x), len(starts), k), np.inf)  # the k nearest within each block
    for rows in _chunks(len(x)):
        squares = _squares(x[rows], x)
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = np.inf
        for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
            some = min(k, end - start)
            near[rows, block, :some] = np.partition(squares[:, start:end], some - 1, axis=1)[:, :some]
    found = [np.partition(near.reshape(len(x), -1), k - 1)[:, k - 1]]
    for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if len(starts) > 1:
            others = np.delete(near, block, axis=1).reshape(len(x), -1)
            found.append(np.partition(others, k - 1)[:, k - 1])
            found[-1][start:end] = -1
    return np.array(found)


class Nearest:
    """For each query [Q, dims], the nearest of the rows that stream by: `number` [Q], `distance` [Q] (Euclidean)."""

    def __init__(self, queries: np.ndarray):
        self._queries = np.asarray(queries, dtype=np.float64)
        self.number, self.distance = np.full(len(queries), -1), np.full(len(queries), np.inf)

    def update(self, numbers: np.ndarray, features: np.ndarray) -> None:
        """Rows `features` [B, dims], numbered by `numbers` [B]."""
        (features,) = _double(features)
        distances = np.sqrt(((self._queries[:, None] - features) ** 2).sum(axis=2))  # [Q, B]
        best = distances.argmin(axis=1)
        closest = distances[np.arange(len(best)), best]
        nearer = closest < self.distance
        self.number[nearer], self.distance[nearer] = numbers[best[nearer]], closest[nearer]

    def share(self) -> None:
        """Take in what the other processes saw."""
        for number, distance in distributed.gather_objects((self.number, self.distance)):
            nearer = (distance < self.distance) | ((distance == self.distance) & (number < self.number))
            self.number[nearer], self.distance[nearer] = number[nearer], distance[nearer]
