"""Discrete data: the lattice of values that each dimension takes, and how an estimate is rounded to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion import per_sample


@dataclass(frozen=True)
class Lattice:
    """The values that each dimension of discrete data can take: low, low + step, ... (`levels` of them)."""

    low: float
    step: float
    levels: int

    @property
    def high(self) -> float:
        return self.low + self.step * (self.levels - 1)

    def level(self, x: Tensor) -> Tensor:
        """Number of the nearest value, as a float, clamped to the lattice. [...] -> [...]"""
        return ((x - self.low) / self.step).round().clamp(0, self.levels - 1)

    def hard(self, x: Tensor) -> Tensor:
        """The nearest value. [...] -> [...]"""
        return self.low + self.step * self.level(x)

    def soft(self, x_hat: Tensor, logsnr: Tensor) -> Tensor:
        """The mean of softmax over values b of -1/2 (x_hat - b)^2 (1 + SNR). [B, *shape], [B] -> [B, *shape]"""
        sharpness = per_sample((1 + logsnr.double().exp()).sqrt(), x_hat)
        nearest = self.level(x_hat)
        off = x_hat - (self.low + self.step * nearest)
        total, moment = torch.zeros_like(x_hat), torch.zeros_like(x_hat)
        for shift in self._shifts(sharpness):
            exponent = -0.5 * sharpness**2 * (shift * self.step) * (shift * self.step - 2 * off)
            share = exponent.where(self._exists(nearest + shift), -math.inf).exp()
            total, moment = total + share, moment + share * shift
        return self.low + self.step * (nearest + moment / total)

    def softmax_nll(self, x: Tensor, logsnr: Tensor, eps: Tensor) -> Tensor:
        """-log softmax over values b of -1/2 SNR (x_noisy / sqrt(s(a)) - b)^2, at b = x: VDM's decoder.

        x, eps [B, *shape]; logsnr [B] -> [B] nats, summed over dimensions
        """
        sharpness = per_sample((logsnr.double() / 2).exp(), x)
        level = self.level(x)
        total = torch.zeros_like(x)
        for shift in self._shifts(sharpness):
            gap = sharpness * (shift * self.step)
            # -1/2 (eps - gap)^2 + 1/2 eps^2, relative to the true value: no cancellation at high log-SNR.
            total = total + (gap * eps - 0.5 * gap**2).where(self._exists(level + shift), -math.inf).exp()
        return total.log().flatten(1).sum(1, dtype=torch.float64)

    def rounding_tail(self, logsnr: float) -> float:
        """1/2 Integral_R^inf of the error of rounding x_noisy / sqrt(s(a)), in nats a dimension.

        2 sum_{j>=1} [(1 - u_j^2) Q(u_j) + u_j phi(u_j)] / (j - 1/2),  u_j = (j - 1/2) step e^(R/2)
        """
        half = torch.arange(1, self.levels, dtype=torch.float64) - 0.5
        u = half * self.step * math.exp(logsnr / 2)
        density = (-0.5 * u**2).exp() / math.sqrt(2 * math.pi)
        beyond = 0.5 * torch.special.erfc(u / math.sqrt(2))
        return (2 * ((1 - u**2) * beyond + u * density) / half).sum().item()

    def _shifts(self, sharpness: Tensor) -> range:
        """Offsets of the lattice values within 20 deviations, for the least sharp sample."""
        reach = min(self.levels - 1, math.ceil(20 / (self.step * sharpness.min().item())))
        return range(-reach, reach + 1)

    def _exists(self, level: Tensor) -> Tensor:
        return (level >= 0) & (level < self.levels)


def lattice_of(levels: int | None) -> Lattice | None:
    """The lattice of images in [-1, 1] with so many grey levels; None for points."""
    return None if levels is None else Lattice(-1.0, 2 / (levels - 1), levels)
