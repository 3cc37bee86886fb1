"""Where in the picture the information of z lies: I(x; z) before its sum over pixels, in bands of log-SNR.

    I(x; z) = sum over pixels i of 1/2 Integral E (eps_hat_i(x_a) - eps_hat_i(x_a, z))^2 da

(Kong et al. 2024), for ideal denoisers. The two estimates differ by the gradient of a classifier (Bayes' rule; Dhariwal
& Nichol 2021, sec. 4),

    eps_hat(x_a) - eps_hat(x_a, z) = sqrt(s(-a)) grad log p(z | x_a)

so a classifier or critic of x_a maps a label or z as the two branches of a denoiser map z, and with the exact posterior
a map sums to I(x; z). A trained classifier's gradient has errors of its own, whose squares would add up; with two
networks fitted apart the product of their gradients takes the place of the square, and errors that they do not share
average to nothing. A map's sum stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from diffusion import diffuse
from information.likelihood import Mean, average
from rng import Rng

# (x_a [B,C,H,W], logsnr [B], index [B]) -> name -> difference of two estimates of the noise [B,C,H,W], twice: by two
# networks, or the same one
Gaps = Callable[[Tensor, Tensor, Tensor], dict[str, tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Map:
    """What one name's map says, in nats.

    nats    [bands, H, W] float64, mean over images; its sum is the information
    total   that sum, with the standard error over images
    shares  the share of it on each mask, where masks were given and there is something to share
    """

    nats: Tensor
    total: Mean
    shares: list[Mean] | None

    def columns(self, names: tuple[str, ...]) -> dict:
        """As it stands in a result file; the pictures themselves go into an .npz file."""
        found = {"nats": self.total.mean, "se": self.total.se, "by_band_nats": self.nats.sum((1, 2)).tolist()}
        if self.shares is not None:
            found["share_on"] = {name: share._asdict() for name, share in zip(names, self.shares, strict=True)}
        return found


def maps(gaps: Gaps, batches: Iterable[tuple[Tensor, Tensor]], edges: list[float], points: int, seed: int,
         masks: Callable[[Tensor], Tensor] | None = None) -> dict[str, Map]:
    """The map of every name that `gaps` returns, between neighbouring `edges` of log-SNR.

    batches     (index [B], x [B,C,H,W])
    points      log-SNRs a band, at the middles of its equal parts, one for a whole batch
    masks       index [B] -> [B, M, H, W], how much of each pixel belongs to each of M regions
    """
    pictures, whole, regions = {}, {}, {}
    for index, x in batches:
        found = {}
        for band, (low, high) in enumerate(pairwise(edges)):
            for point in range(points):
                a = low + (high - low) * (point + 0.5) / points
                logsnr = torch.full((len(x),), a, device=x.device)
                eps = Rng(seed, index, band * points + point).normal("maps", *x.shape[1:])
                for name, (gap, other) in gaps(diffuse(x, logsnr, eps), logsnr, index).items():
                    parts = found.setdefault(name, torch.zeros(len(x), len(edges) - 1, *x.shape[2:]).double())
                    parts[:, band] += 0.5 * (high - low) / points * (gap.double() * other.double()).sum(1).cpu()
        inside = None if masks is None else masks(index).double()
        for name, parts in found.items():
            pictures[name] = pictures.get(name, 0) + parts.sum(0)
            whole.setdefault(name, []).append(parts.sum((1, 2, 3)))
            if inside is not None:
                regions.setdefault(name, []).append((parts.sum(1)[:, None] * inside).sum((2, 3)))
    result = {}
    for name, picture in pictures.items():
        nats = torch.cat(whole[name])
        shares = None if masks is None or not nats.any() else [ratio(part, nats) for part in torch.cat(regions[name]).T]
        result[name] = Map(picture / len(nats), average(nats), shares)
    return result


def ratio(part: Tensor, whole: Tensor) -> Mean:
    """mean part / mean whole, its standard error by the delta method. [N], [N]"""
    share = (part.mean() / whole.mean()).item()
    return Mean(share, average((part - share * whole) / whole.mean()).se)


def gaps_of_readers(networks: tuple[nn.Module, nn.Module], z: Tensor, names: list[str]) -> Gaps:
    """sqrt(s(-a)) grad log q(z | x_a, a) of two networks of `by_logsnr.py`; z [N, .] by index.

    names   of each head's label; a single name is that of all heads together
    """
    def of(network: nn.Module, x_noisy: Tensor, logsnr: Tensor, index: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            x_noisy = x_noisy.detach().requires_grad_(True)
            nats = network.nats(x_noisy, logsnr, z[index]).sum(0)  # a row's depends on its own x_a alone
            nats = nats.sum(0, keepdim=True) if len(names) == 1 else nats
            scale = torch.sigmoid(-logsnr).sqrt()[:, None, None, None]
            return [scale * torch.autograd.grad(one, x_noisy, retain_graph=True)[0] for one in nats]

    def gaps(x_noisy: Tensor, logsnr: Tensor, index: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        both = (of(network, x_noisy, logsnr, index) for network in networks)
        return dict(zip(names, zip(*both, strict=True), strict=True))

    return gaps


def gaps_of_denoiser(denoiser, z: Tensor, name: str, dimensions: list[int]) -> Gaps:
    """eps_hat(x_a) - eps_hat(x_a, z), and for single entries of z the change when that entry is another image's.

    The latter is the orthogonal form of what the denoiser loses without the entry (`mutual_information.reliance`).
    """
    @torch.no_grad()
    def gaps(x_noisy: Tensor, logsnr: Tensor, index: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        given = denoiser(x_noisy, logsnr, z[index])
        found = {name: denoiser(x_noisy, logsnr) - given}
        for dimension in dimensions:
            mixed = z[index].clone()
            mixed[:, dimension] = z[(index + 1) % len(z), dimension]
            found[f"z_{dimension}"] = denoiser(x_noisy, logsnr, mixed) - given
        return {name: (gap, gap) for name, gap in found.items()}

    return gaps


def arrays(found: dict[str, Map], edges: list[float]) -> dict[str, np.ndarray]:
    """What an .npz file holds: `logsnr`, the edges of the bands, and nats [bands, H, W] under each name."""
    return {"logsnr": np.asarray(edges), **{name: one.nats.numpy() for name, one in found.items()}}
