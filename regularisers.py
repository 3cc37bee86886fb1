"""What pulls z towards a prior: the priors themselves, the closed-form KL and the MMD (InfoDiffusion, sec. 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rng import Rng


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


def kl_to_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, e^logvar) || N(0, I)), summed over the latents, in nats. [B, a_dim] twice -> [B]"""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)


def bandwidth(a_dim: int, kernel: str) -> float:
    """Of exp(-|x - y|^2 / bandwidth): 'published' a_dim^2, nearly flat in high dimension, or 'scaled' with a_dim.

    Two standard normal points are 2 a_dim apart on average, so a bandwidth of 2 a_dim keeps the exponent near -1 and
    the gradient alive at any dimension.
    """
    return float(a_dim**2) if kernel == "published" else 2.0 * a_dim


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
