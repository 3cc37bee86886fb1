"""Errors of reconstructed images: MSE, PSNR and SSIM of image pairs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def image_errors(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """MSE (on [-1, 1]), PSNR in decibels (range 2) and SSIM of image pairs [B,C,H,W], each [B] float64 on the CPU."""
    a = a.clamp(-1, 1)
    mse = (a - b).double().square().flatten(1).mean(1)
    return {"mse": mse.cpu(), "psnr": (10 * torch.log10(4 / mse.clamp(min=1e-12))).cpu(), "ssim": ssim(a, b).cpu()}


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), Gaussian window of 11 pixels, deviation 1.5 (smaller on tiny images).

    [B,C,H,W] in [-1, 1] -> [B], the mean over windows that fit.
    """
    size = min(11, a.shape[-1] - (a.shape[-1] + 1) % 2, a.shape[-2] - (a.shape[-2] + 1) % 2)
    place = torch.arange(size, dtype=torch.float64, device=a.device) - size // 2
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    window = (torch.outer(line, line) / line.sum() ** 2).expand(a.shape[1], 1, size, size)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=x.shape[1])

    a, b = (a.double() + 1) / 2, (b.double() + 1) / 2  # its first factor, of the means, is made for intensities >= 0
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    index = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return index.flatten(1).mean(1)


def over_draws(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean error of each image over several `image_errors` of the same images, which are no further images."""
    return {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in draws[0]}


def summary(parts: list[dict[str, Tensor]]) -> dict[str, float | None]:
    """Means and standard errors over images (None for a single one) of a list of `image_errors`, of other images each.
    """
    result = {}
    for name in parts[0]:
        values = torch.cat([part[name] for part in parts])
        result[name] = values.mean().item()
        result[f"{name}_se"] = (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None
    return result
