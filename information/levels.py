"""I(x_a; z) over log-SNR a: lower bounds from networks that are told a, on rows they were not fitted to.

    classes     i(a) = H(z) - E[ -log q(z | x_a, a) ]                     a classifier, one head a label
                (a head a label: the labels' joint entropy given x_a is at most the sum)
    codes       i(a) = E log [ e^f(x_a, a, z_i) / (1/K sum_j e^f(x_a, a, z_j)) ]      a critic, at most log K
                (InfoNCE: van den Oord et al. 2018; Poole et al. 2019, eq. 12)

Both are bounds at every a whatever the network, since no part of I is a difference of two networks' errors. The slope
di/da says at which noise levels x begins to tell z.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import trange

from diffusion import Gaussian, diffuse
from information.likelihood import Mean, average
from modules import mlp, sinusoids
from rng import Rng

FEATURES = 32  # sinusoids of log-SNR
POOLED = 32  # pixels a side above which images are averaged: what is lost only lowers a bound
AXES = 512  # of the data's Gaussian, those of the largest variance, along which a network sees x_a
COMPARED = 500  # rows that a critic tells apart


class Reader(nn.Module):
    """(x_a, a) -> features: a network of the pixels and of sinusoids of a. [B, *shape], [B] -> [B, outputs]

    gaussian    of the data: the network also sees x_a along its axes, of unit variance at every a, or what
                low-variance axes tell at high log-SNR takes many times the steps to find
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
        self.layers = mlp(entries + FEATURES, hidden, outputs)

    def forward(self, x_noisy: Tensor, logsnr: Tensor) -> Tensor:
        parts = [self.pool(x_noisy).flatten(1), sinusoids(logsnr, FEATURES)]
        if self.whitens:
            signal, noise = torch.sigmoid(logsnr)[:, None], torch.sigmoid(-logsnr)[:, None]
            along = x_noisy.flatten(1) @ self.basis - signal.sqrt() * self.centre
            parts.append(along / (signal * self.variances + noise).sqrt())
        return self.layers(torch.cat(parts, 1))


class Heads(nn.Module):
    """A classifier of several labels. `nats` are log q(z_k | x_a, a)."""

    def __init__(self, shape: tuple[int, ...], sizes: tuple[int, ...], hidden: int = 512,
                 gaussian: Gaussian | None = None):
        super().__init__()
        self.sizes, self.reader = sizes, Reader(shape, sum(sizes), hidden, gaussian)

    def nats(self, x_noisy: Tensor, logsnr: Tensor, z: Tensor) -> Tensor:
        """z [B, K] int64 -> [B, K]"""
        logits = self.reader(x_noisy, logsnr).split(self.sizes, 1)
        found = [torch.log_softmax(part.double(), 1).gather(1, z[:, k : k + 1]) for k, part in enumerate(logits)]
        return torch.cat(found, 1)


class Critic(nn.Module):
    """f(x_a, a, z) = g(x_a, a) . h(z). `nats` are its log-probabilities that row i's z is its own, plus log K."""

    def __init__(self, shape: tuple[int, ...], width: int, hidden: int = 384, features: int = 32,
                 gaussian: Gaussian | None = None):
        super().__init__()
        self.reader, self.code = Reader(shape, features, hidden, gaussian), mlp(width, hidden, features)

    def nats(self, x_noisy: Tensor, logsnr: Tensor, z: Tensor) -> Tensor:
        """z [K, width] -> [K, 1]"""
        scores = (self.reader(x_noisy, logsnr) @ self.code(z).T).double()
        return (scores.diagonal() - torch.logsumexp(scores, 1) + math.log(len(z)))[:, None]


def fit(network: nn.Module, batch_at: Callable[[Tensor], tuple[Tensor, Tensor]], count: int,
        levels: tuple[float, float], steps: int, seed: int, batch: int = 256, learning_rate: float = 2e-3):
    """Fit a network to x_a at log-SNRs drawn evenly from `levels`; returns it in evaluation mode.

    batch_at    indices [B] of `count` rows -> (x [B, *shape], z [B, .])
    A critic gets one log-SNR a batch, so that no row is told from another by its noise. A function of `seed`.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    low, high = levels
    for step in trange(steps, desc="fitting the curve over log-SNR", leave=False):
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        rng = Rng(seed, torch.arange(batch), step)
        x, z = batch_at((rng.uniform("row").double() * count).long())
        rng = Rng(seed, torch.arange(batch, device=x.device), step)
        unit = rng.uniform("logsnr")
        logsnr = low + (high - low) * (unit[:1].expand(batch) if isinstance(network, Critic) else unit)
        nats = network.nats(diffuse(x, logsnr, rng.normal("eps", *x.shape[1:])), logsnr, z)
        optimizer.zero_grad(set_to_none=True)
        (-nats.sum(1).mean()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def measure(network: nn.Module, x: Tensor, z: Tensor, levels: list[float], seed: int) -> Tensor:
    """`nats` of a network at each level, on rows that were held out: [L, N, K], K 1 for a critic."""
    found = []
    for number, level in enumerate(levels):
        nats = []
        for rows in torch.arange(len(x), device=x.device).split(COMPARED):
            logsnr = torch.full((len(rows),), float(level), device=x.device)
            eps = Rng(seed, rows, number).normal("eps", *x.shape[1:])
            nats.append(network.nats(diffuse(x[rows], logsnr, eps), logsnr, z[rows]))
        found.append(torch.cat(nats))
    return torch.stack(found)


def surprise(z: Tensor) -> Tensor:
    """-log of the frequency of each label among these rows: its mean is at most H(z_k) on average. [N, K] -> [N, K]"""
    return torch.stack([-(torch.bincount(column)[column].double() / len(z)).log() for column in z.T], 1)


@torch.no_grad()
def exact_levels(images: Tensor, group: Tensor, mixing: Tensor, rows: Tensor, z: Tensor, levels: list[float],
                 seed: int) -> list[Mean]:
    """i(a) itself where x is uniform over a finite set: the posterior over the set is a softmax of distances.

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
    for number, level in enumerate(levels):
        dtype = torch.float32 if level < 4 else torch.float64  # distances are multiplied by e^level
        eps = Rng(seed, torch.arange(len(x)), number).normal("eps", x.shape[1])
        y = (x + math.exp(-level / 2) * eps).to(dtype)
        logs = torch.stack([_log_sum(y, part, level) for part in images.split(sizes)], 1).double()  # [N, G]
        posterior = torch.softmax(logs, 1) @ mixing  # p(z | x_a)
        found.append(average(posterior.gather(1, z[:, None])[:, 0].log() - marginal[z]))
    return found


@torch.no_grad()
def exact_images(images: Tensor, rows: Tensor, levels: list[float], seed: int) -> list[Mean]:
    """i(a) where z is the image's own number: log M - E[-log p(image | x_a)], on the same noise as `exact_levels`."""
    images = images - images.mean(0)
    found = []
    for number, level in enumerate(levels):
        dtype = torch.float32 if level < 4 else torch.float64
        y = (images[rows] + math.exp(-level / 2) * Rng(seed, torch.arange(len(rows)), number).normal(
            "eps", images.shape[1])).to(dtype)
        own = images[rows].to(dtype)
        fit = math.exp(level) * ((y * own).sum(1) - 0.5 * own.square().sum(1))
        found.append(average((fit - _log_sum(y, images, level)).double() + math.log(len(images))))
    return found


def _log_sum(y: Tensor, images: Tensor, level: float, chunk: int = 20_000) -> Tensor:
    """log sum_m exp(-e^a/2 |y - m|^2), but for |y|^2's term. [N, d], [M, d] -> [N]"""
    parts = []
    for some in images.split(chunk):
        some = some.to(y.dtype)
        parts.append(torch.logsumexp(math.exp(level) * (y @ some.T - 0.5 * some.square().sum(1)), 1))
    return torch.logsumexp(torch.stack(parts), 0)
