"""Errors of reconstructed images: SSIM by its definition, and standard errors over images."""

import math

import numpy as np
import pytest
import torch

from metrics.reconstruction import image_errors, over_draws, ssim, summary


def one_window(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two 11x11 pictures of intensities in [0, 255], whose one window is all of them (Wang et al. 2004)."""
    place = np.arange(11) - 5
    weight = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weight /= weight.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
    var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
    cov = (weight * (a - mean_a) * (b - mean_b)).sum()
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * cov + c2) / (var_a + var_b + c2)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels / 127.5 - 1)[None, None]


def test_ssim_is_that_of_intensities_from_0():
    rng = np.random.default_rng(0)
    pictures = [(np.full((11, 11), 125.0), np.full((11, 11), 130.0))]  # on either side of mid-grey
    pictures += [(rng.uniform(0, 255, (11, 11)), rng.uniform(0, 255, (11, 11))) for _ in range(3)]
    for a, b in pictures:
        assert ssim(as_images(a), as_images(b)).item() == pytest.approx(one_window(a, b), abs=1e-9)
    assert one_window(*pictures[0]) > 0.99


def test_draws_of_the_same_images_are_no_further_images():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(400, 1, 1, 1, generator=generator) * 0.2  # an image's own error, the same in every draw
    x = torch.zeros(400, 1, 4, 4)
    draws = [image_errors(own + 0.01 * torch.randn(400, 1, 4, 4, generator=generator), x) for _ in range(9)]
    one, all_of_them = summary(draws[:1]), summary([over_draws(draws)])
    assert all_of_them["mse_se"] == pytest.approx(one["mse_se"], rel=0.05)
    assert all_of_them["mse"] == pytest.approx(np.mean([summary([draw])["mse"] for draw in draws]))
    assert math.isfinite(all_of_them["psnr_se"])
    assert summary([image_errors(own[:1].expand(1, 1, 4, 4), x[:1])])["mse_se"] is None  # one image has no spread
