"""What pulls z towards a prior (InfoDiffusion, sec. 4): the priors, and the regularisers KL and MMD.

A new regulariser is a class below Regulariser, in REGULARISERS, and its weight, a flag in config/flags.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import distributed
from config import Config
from rng import Rng
from utils import CommandError

# ---------------------------------------------------------------------------------------------------------------------
# Priors


def regular(rng: Rng, a_dim: int) -> Tensor:
    """N(0, I). -> [B, a_dim]"""
    return rng.normal("prior", a_dim)


def ten_mix(rng: Rng, a_dim: int) -> Tensor:
    """Every pair of dimensions a draw of a ten-armed mixture. -> [B, a_dim], a_dim even

    Arm k: radial deviation .5, tangential .1, centre 1.4 from the origin, rotated by 2 pi k / 10
    (Makhzani et al. 2015).
    """
    pairs = a_dim // 2
    angle = (rng.uniform("arm", pairs) * 10).floor() * (2 * math.pi / 10)
    radial, tangential = (rng.normal("prior", pairs, 2) * torch.tensor([0.5, 0.1], device=angle.device)).unbind(-1)
    radial = radial + 1.4
    x = radial * angle.cos() - tangential * angle.sin()
    y = radial * angle.sin() + tangential * angle.cos()
    return torch.stack([x, y], dim=-1).flatten(1)


def roll(rng: Rng, a_dim: int = 2) -> Tensor:
    """The swiss roll: scikit-learn's make_swiss_roll(noise=.5), columns 0 and 2, over 5. -> [B, 2]"""
    t = 1.5 * math.pi * (1 + 2 * rng.uniform("turn"))
    spiral = torch.stack([t * t.cos(), t * t.sin()], dim=-1)
    return (spiral + 0.5 * rng.normal("prior", 2)) / 5


PRIORS = {"regular": regular, "10mix": ten_mix, "roll": roll}


# ---------------------------------------------------------------------------------------------------------------------
# Divergences


def kl_to_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, e^logvar) || N(0, I)), summed over the latents, in nats. [B, a_dim] twice -> [B]"""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)


def bandwidth(a_dim: int, kernel: str) -> float:
    """Of exp(-|x - y|^2 / bandwidth): 'published' a_dim^2, nearly flat in high dimension, or 'scaled' with a_dim.

    Two standard normal points are 2 a_dim apart on average, so a bandwidth of 2 a_dim keeps the exponent near -1 and
    the gradient alive at any dimension.
    """
    return {"scaled": 2.0 * a_dim, "published": float(a_dim**2)}[kernel]


def mmd(x: Tensor, y: Tensor, width: float) -> Tensor:
    """Squared maximum mean discrepancy, unbiased: off-diagonal means (Gretton et al. 2012, eq. 3). -> []

    x [N, a_dim] and y [M, a_dim] with N, M >= 2; kernel exp(-|x - y|^2 / width). It may be negative.
    """
    x, y = x.float(), y.float()
    return _off_diagonal_mean(x, width) + _off_diagonal_mean(y, width) - 2 * _kernel(x, y, width).mean()


def _kernel(x: Tensor, y: Tensor, width: float) -> Tensor:
    squared = x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * x @ y.T
    return torch.exp(-squared.clamp(min=0) / width)


def _off_diagonal_mean(x: Tensor, width: float) -> Tensor:
    n = len(x)
    return (_kernel(x, x, width).sum() - n) / (n * (n - 1))


# ---------------------------------------------------------------------------------------------------------------------
# Regularisers


class Codes(NamedTuple):
    """A batch of latents and what a regulariser may want to know of it.

    z           [B, a_dim] what the decoder is given
    mean        [B, a_dim] of q(z|x); the code itself where the encoder is deterministic
    logvar      [B, a_dim] of q(z|x), or None
    prior       draws [B, a_dim] from the prior, one for each sample
    progress    share of the training that is over, in [0, 1]
    gather      rows of this process -> rows of all processes that train together
    """

    z: Tensor
    mean: Tensor
    logvar: Tensor | None
    prior: Callable[[], Tensor]
    progress: float
    gather: Callable[[Tensor], Tensor]


class Regulariser:
    """A term of the loss that a batch of codes has.

    flag            of its weight; a weight of 0 leaves it out
    name            under which its value is logged
    smallest_batch  rows that it needs
    """

    flag: str
    name: str
    smallest_batch = 1

    def __init__(self, config: Config):
        pass

    def value(self, codes: Codes) -> Tensor:
        """As it is logged: one value a sample [B], or one of the batch []."""
        raise NotImplementedError

    def penalty(self, value: Tensor, codes: Codes) -> Tensor:
        """What the weight multiplies, over the batches of all processes: []"""
        return codes.gather(value).mean()


class KL(Regulariser):
    """KL(q(z|x) || N(0, I)); with a capacity C, |KL - C| (beta-VAE, Burgess et al. 2018, eq. 8)."""

    flag, name = "kld_weight", "kl"

    def __init__(self, config: Config):
        self.capacity = config.C_max if config.use_C else None

    def value(self, codes: Codes) -> Tensor:
        """[B] nats"""
        return kl_to_normal(codes.mean, codes.logvar)

    def penalty(self, value: Tensor, codes: Codes) -> Tensor:
        kl = super().penalty(value, codes)
        return kl if self.capacity is None else (kl - self.capacity * codes.progress).abs()


class MMD(Regulariser):
    """The squared maximum mean discrepancy of q(z) and the prior, over the batches of all processes."""

    flag, name, smallest_batch = "mmd_weight", "mmd", 2

    def __init__(self, config: Config):
        self.width = bandwidth(config.a_dim, config.mmd_kernel)

    def value(self, codes: Codes) -> Tensor:
        """[]"""
        return mmd(codes.gather(codes.z), codes.gather(codes.prior()), self.width)

    def penalty(self, value: Tensor, codes: Codes) -> Tensor:
        return value


REGULARISERS = (KL, MMD)


class Latent:
    """The latent z: its prior, how it is drawn from q(z|x), and the regularisers in force (InfoDiffusion, eq. 8).

    z is a sample of q(z|x) exactly where KL has weight; else the deterministic code.
    """

    def __init__(self, config: Config):
        self.a_dim, self.draw_prior = config.a_dim, PRIORS[config.prior]
        self.stochastic = config.kld_weight > 0
        self.in_force = [(getattr(config, kind.flag), kind(config)) for kind in REGULARISERS
                         if getattr(config, kind.flag) > 0]

    def prior(self, rng: Rng) -> Tensor:
        """A draw for each of the numbered samples. -> [B, a_dim]"""
        return self.draw_prior(rng, self.a_dim)

    def draw(self, mean: Tensor, logvar: Tensor | None, rng: Rng) -> Tensor:
        """z as the decoder is given it. [B, a_dim] -> [B, a_dim]"""
        return mean if logvar is None else mean + (logvar / 2).exp() * rng.normal("z", self.a_dim)

    @property
    def smallest_batch(self) -> int:
        """Rows that the regularisers in force need at least."""
        return max((one.smallest_batch for _, one in self.in_force), default=1)

    def check_batch(self, rows: int) -> None:
        """Raise CommandError where a batch of so many rows is too small for a regulariser in force."""
        for _, one in self.in_force:
            if rows < one.smallest_batch:
                raise CommandError(f"--batch_size {rows} is too small for the {one.name} term, which needs "
                                   f"{one.smallest_batch} images: use more, or --{one.flag} 0")

    def add(self, loss: Tensor, z: Tensor, mean: Tensor, logvar: Tensor | None, rng: Rng, progress: float,
            together: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [] with the weighted penalties added, and the values by name.

        together    over the batches of all processes, which must all call this (training), or over this one's alone
        """
        gather = distributed.gather if together else lambda rows: rows
        codes = Codes(z, mean, logvar, lambda: self.prior(rng), progress, gather)
        values = {}
        for weight, one in self.in_force:
            values[one.name] = one.value(codes)
            loss = loss + weight * one.penalty(values[one.name], codes)
        return loss, values
