"""I(x_a; z) over log-SNR a: lower bounds from networks conditioned on a, on rows they were not fitted to.

    classes     i(a) = H(z) - E[ -log q(z | x_a, a) ]                     a classifier, one head a label
                of several labels together: head k is also conditioned on the labels before it (chain rule)
    codes       i(a) = E log [ e^f(x_a, a, z_i) / (1/K sum_j e^f(x_a, a, z_j)) ]      a critic, at most log K
                (InfoNCE: van den Oord et al. 2018; Poole et al. 2019, eq. 12)

Both are bounds at every a whatever the network, since no part of I is a difference of two networks' errors. The slope
di/da says at which noise levels x begins to determine z.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion import Gaussian, diffuse
from information.likelihood import Mean, average
from modules import mlp, sinusoids
from rng import Rng
from utils import progress_bar

FEATURES = 32  # sinusoids of log-SNR
POOLED = 32  # pixels a side above which images are averaged: what is lost only lowers a bound
AXES = 512  # of the data's Gaussian, those of the largest variance, along which a network sees x_a
WARMUP = 100  # steps
COMPARED = 500  # rows among which a critic finds the one that z belongs to


class Reader(nn.Module):
    """(x_a, a) -> features: layers over the pixels and sinusoids of a. [B, *shape], [B] -> [B, outputs]

    hidden      width of two hidden layers; 0: one linear map
    gaussian    of the data: the network also sees x_a along its axes, of unit variance at every a, or what
                low-variance axes hold at high log-SNR takes many times the steps to find
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, hidden: int, gaussian: Gaussian | None = None):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(POOLED) if len(shape) == 3 and shape[-1] > POOLED else nn.Identity()
        entries = math.prod(shape) if isinstance(self.pool, nn.Identity) else shape[0] * POOLED**2
        self.whitens = gaussian is not None and gaussian.basis is not None
        if self.whitens:
            leading = gaussian.variances.argsort(descending=True)[:AXES]
            self.register_buffer("basis", gaussian.basis[:, leading].float())
            self.register_buffer("centre", (gaussian.mean @ gaussian.basis[:, leading].to(gaussian.mean)).float())
            self.register_buffer("variances", gaussian.variances[leading].float())
            entries += len(leading)
        inputs = entries + FEATURES
        self.layers = mlp(inputs, hidden, outputs) if hidden else nn.Linear(inputs, outputs)

    def forward(self, x_noisy: Tensor, logsnr: Tensor) -> Tensor:
        parts = [self.pool(x_noisy).flatten(1), sinusoids(logsnr, FEATURES)]
        if self.whitens:
            signal, noise = torch.sigmoid(logsnr)[:, None], torch.sigmoid(-logsnr)[:, None]
            along = x_noisy.flatten(1) @ self.basis - signal.sqrt() * self.centre
            parts.append(along / (signal * self.variances + noise).sqrt())
        return self.layers(torch.cat(parts, 1))


class Heads(nn.Module):
    """A classifier of several labels. `nats` are log q(z_k | x_a, a), if chained log q(z_k | x_a, a, z_1 .. z_(k-1)).

    All heads share linear features of x_a, normalised (Ba et al. 2016), then scaled and shifted by a, and by the
    earlier labels where chained (FiLM: Perez et al. 2018): the log-likelihood of an outline is bilinear in x_a and the
    colours on either side.
    """

    batch, learning_rate = 128, 5e-3

    def __init__(self, shape: tuple[int, ...], sizes: tuple[int, ...], chained: bool = False, hidden: int = 512,
                 gaussian: Gaussian | None = None):
        super().__init__()
        self.reader, self.norm = Reader(shape, hidden, 0, gaussian), nn.LayerNorm(hidden)
        self.logsnr = nn.Linear(FEATURES, 2 * hidden)
        self.labels = nn.ModuleList(nn.Embedding(size, 2 * hidden) for size in sizes[:-1]) if chained else ()
        for embedding in self.labels:
            nn.init.normal_(embedding.weight, std=0.1)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden // 4), nn.SiLU(), nn.Linear(hidden // 4, size)) for size in sizes)

    def nats(self, x_noisy: Tensor, logsnr: Tensor, z: Tensor) -> Tensor:
        """z [B, K] int64 -> [B, K]"""
        features, modulation = self.norm(self.reader(x_noisy, logsnr)), self.logsnr(sinusoids(logsnr, FEATURES))
        found = []
        for k, head in enumerate(self.heads):
            scale, shift = modulation.chunk(2, 1)
            logits = head(F.silu(features * (1 + scale) + shift))
            found.append(torch.log_softmax(logits.double(), 1).gather(1, z[:, k : k + 1]))
            if k < len(self.labels):
                modulation = modulation + self.labels[k](z[:, k])
        return torch.cat(found, 1)


class Critic(nn.Module):
    """f(x_a, a, z) = g(x_a, a) . h(z). `nats` are its log-probabilities that row i's z is its own, plus log K."""

    batch, learning_rate = 256, 2e-3

    def __init__(self, shape: tuple[int, ...], width: int, hidden: int = 384, features: int = 32,
                 gaussian: Gaussian | None = None):
        super().__init__()
        self.reader, self.code = Reader(shape, features, hidden, gaussian), mlp(width, hidden, features)

    def nats(self, x_noisy: Tensor, logsnr: Tensor, z: Tensor) -> Tensor:
        """z [K, width] -> [K, 1]"""
        scores = (self.reader(x_noisy, logsnr) @ self.code(z).T).double()
        return (scores.diagonal() - torch.logsumexp(scores, 1) + math.log(len(z)))[:, None]


class Pair(nn.Module):
    """Two networks of one kind, fitted apart: log of their mean probability, no worse than their mean `nats`."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.both = nn.ModuleList((first, second))

    def nats(self, x_noisy: Tensor, logsnr: Tensor, z: Tensor) -> Tensor:
        return torch.logaddexp(*(network.nats(x_noisy, logsnr, z) for network in self.both)) - math.log(2)


class Levels:
    """Where on [0, 1] to fit: a density by the losses seen in each of its equal parts, even at first."""

    parts, memory, even = 16, 0.95, 0.2

    def __init__(self):
        self.loss, self.count = torch.zeros(self.parts).double(), torch.zeros(self.parts).double()

    def density(self) -> Tensor:
        """sqrt((loss - least) (most - loss)), mixed with the uniform one. [parts], of sum one"""
        if not self.count.all():
            return torch.full((self.parts,), 1 / self.parts).double()
        loss = self.loss / self.count
        weight = ((loss - loss.min()) * (loss.max() - loss)).sqrt() + 1e-12
        return (1 - self.even) * weight / weight.sum() + self.even / self.parts

    def draw(self, unit: Tensor) -> Tensor:
        """Uniform draws -> draws of the density, by its inverse distribution function."""
        density = self.density().to(unit.device)
        ends = density.cumsum(0)
        part = torch.searchsorted(ends[:-1].contiguous(), unit.double())
        return ((part + 1 - (ends[part] - unit) / density[part]) / self.parts).clamp(0, 1).float()

    def see(self, unit: Tensor, loss: Tensor) -> None:
        """Losses at such draws enter a moving average."""
        part = (unit.cpu() * self.parts).long().clamp(max=self.parts - 1)
        for total, value in ((self.loss, loss.cpu().double()), (self.count, torch.ones(len(part)).double())):
            total.mul_(self.memory).index_add_(0, part, value)


def fit(network: nn.Module, batch_at: Callable[[Tensor], tuple[Tensor, Tensor]], count: int,
        logsnrs: tuple[float, float], steps: int, seed: int):
    """Fit a network to x_a at log-SNRs of the range `logsnrs`; returns it in evaluation mode. A function of `seed`.

    batch_at    indices [B] of `count` rows -> (x [B, *shape], z [B, .])
    A critic gets one log-SNR a batch, evenly drawn, so that the noise does not distinguish the rows; a classifier many,
    most of them where its loss is far from both of its ends: where x_a tells nothing, or all, there is little to fit.
    """
    batch, optimizer = network.batch, torch.optim.Adam(network.parameters())
    low, high = logsnrs
    levels = None if isinstance(network, Critic) else Levels()
    for step in progress_bar(range(steps), desc="fitting the curve over log-SNR", leave=False):
        rise, fall = min(1.0, (step + 1) / WARMUP), 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = network.learning_rate * rise * fall
        rng = Rng(seed, torch.arange(batch), step)
        x, z = batch_at((rng.uniform("row").double() * count).long())
        rng = Rng(seed, torch.arange(batch, device=x.device), step)
        unit = rng.uniform("logsnr")
        unit = unit[:1].expand(batch) if levels is None else levels.draw(unit)
        logsnr = low + (high - low) * unit
        nats = network.nats(diffuse(x, logsnr, rng.normal("eps", *x.shape[1:])), logsnr, z)
        optimizer.zero_grad(set_to_none=True)
        (-nats.sum(1).mean()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        if levels is not None:
            levels.see(unit, -nats.detach().sum(1))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def measure(network: nn.Module, x: Tensor, z: Tensor, logsnrs: list[float], seed: int) -> Tensor:
    """`nats` of a network at each log-SNR, on rows that were held out: [L, N, K], K 1 for a critic."""
    found = []
    for number, a in enumerate(logsnrs):
        nats = []
        for rows in torch.arange(len(x), device=x.device).split(COMPARED):
            logsnr = torch.full((len(rows),), float(a), device=x.device)
            eps = Rng(seed, rows, number).normal("eps", *x.shape[1:])
            nats.append(network.nats(diffuse(x[rows], logsnr, eps), logsnr, z[rows]))
        found.append(torch.cat(nats))
    return torch.stack(found)


def surprise(z: Tensor) -> Tensor:
    """-log of the frequency of each label among these rows: its mean is at most H(z_k) on average. [N, K] -> [N, K]"""
    return torch.stack([-(torch.bincount(column)[column].double() / len(z)).log() for column in z.T], 1)


def joint_surprise(z: Tensor) -> Tensor:
    """The same of all labels together: at most H(z), and at most log N. [N, K] -> [N]"""
    return surprise(torch.unique(z, dim=0, return_inverse=True)[1][:, None])[:, 0]


@torch.no_grad()
def exact_curve(images: Tensor, group: Tensor, mixing: Tensor, rows: Tensor, z: Tensor, logsnrs: list[float],
                 seed: int) -> Tensor:
    """log p(z | x_a) / p(z), whose mean is i(a), where x is uniform over a finite set: the posterior over the set is a
    softmax of distances. [L, N], in the noise in which `measure` sees the first N rows.

    images  [M, d] float, all of them; group [M] int64 which of G values of what z depends on each has
    mixing  [G, Z] float64, q(z | group)
    rows    [N] numbers of the measured images, with their z [N] in 0 .. Z - 1; independent draws of (x, z)
    """
    order = torch.argsort(group, stable=True)
    sizes = torch.bincount(group, minlength=len(mixing)).tolist()
    images = images[order]
    share = torch.tensor(sizes, dtype=torch.float64) / len(images)
    marginal = (share @ mixing).log()
    images = images - images.mean(0)
    x = images[torch.argsort(order)[rows]]
    found = []
    for number, logsnr in enumerate(logsnrs):
        dtype = torch.float32 if logsnr < 4 else torch.float64  # distances are multiplied by e^logsnr
        eps = Rng(seed, torch.arange(len(x)), number).normal("eps", x.shape[1])
        y = (x + math.exp(-logsnr / 2) * eps).to(dtype)
        logs = torch.stack([_log_sum(y, part, logsnr) for part in images.split(sizes)], 1).double()  # [N, G]
        posterior = torch.softmax(logs, 1) @ mixing  # p(z | x_a)
        found.append(posterior.gather(1, z[:, None])[:, 0].log() - marginal[z])
    return torch.stack(found)


@torch.no_grad()
def exact_images(images: Tensor, rows: Tensor, logsnrs: list[float], seed: int) -> Tensor:
    """The same where z is the image's own number: log M + log p(image | x_a). [L, N]"""
    images = images - images.mean(0)
    found = []
    for number, logsnr in enumerate(logsnrs):
        dtype = torch.float32 if logsnr < 4 else torch.float64
        y = (images[rows] + math.exp(-logsnr / 2) * Rng(seed, torch.arange(len(rows)), number).normal(
            "eps", images.shape[1])).to(dtype)
        own = images[rows].to(dtype)
        fit = math.exp(logsnr) * ((y * own).sum(1) - 0.5 * own.square().sum(1))
        found.append((fit - _log_sum(y, images, logsnr)).double() + math.log(len(images)))
    return torch.stack(found)


def paired(exact: Tensor, bound: Tensor) -> tuple[Mean, Mean]:
    """What is exact, from few rows, and how far a bound lies below it. [n], [N] whose first n are the same rows.

    The bound's mean over all rows is the exact one's control variate: their difference varies far less than either.
    """
    gap = average(exact - bound[: len(exact)])
    parts = (bound - bound.mean()) / len(bound)
    parts[: len(exact)] += (exact - bound[: len(exact)] - gap.mean) / len(exact)
    return Mean(bound.mean().item() + gap.mean, parts.square().sum().sqrt().item()), gap


def _log_sum(y: Tensor, images: Tensor, logsnr: float, chunk: int = 20_000) -> Tensor:
    """log sum_m exp(-e^a/2 |y - m|^2), but for |y|^2's term. [N, d], [M, d] -> [N]"""
    parts = []
    for some in images.split(chunk):
        some = some.to(y.dtype)
        parts.append(torch.logsumexp(math.exp(logsnr) * (y @ some.T - 0.5 * some.square().sum(1)), 1))
    return torch.logsumexp(torch.stack(parts), 0)
