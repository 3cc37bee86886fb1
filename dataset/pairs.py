"""blobs and rectangles: pairs of pictures that share a chosen number of nats.

Each picture shows one shape whose K parameters (centre, and size of a rectangle) are uniform on (0, 1). Those of the
pair are joined by Gaussian copulas: with (s_k, t_k) standard normal of correlation rho,

    u_k = Phi(s_k),  v_k = Phi(t_k),  I(u; v) = I(s; t) = -K/2 log(1 - rho^2)

since Phi is one to one and the K pairs are independent. So rho = sqrt(1 - e^(-2 I / K)) for a wanted I. A picture
determines its parameters, so the two pictures share I too, up to what rounding to 256 values takes from the first
(x; z is the second, unrounded). Given x, t is normal about rho s with variance 1 - rho^2 = e^(-2 I / K).

After the images of Butakov et al. 2024, mutual information estimation via normalizing flows.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dataset.base import Arrays, Given, Source, Spec

COUNT = 20_000
PARAMETERS = {"blobs": 2, "rectangles": 4}
SPECS = tuple(Spec(name, 16, 1, width=16, depth=3, gives_z=True, z_is_image=True) for name in PARAMETERS)
_RADIUS = 0.12  # deviation of a blob, in sides of the picture
_MARGIN = 0.25  # a centre keeps so far from the edges
_SIDES = 0.15, 0.45  # of a rectangle


def correlation(nats: float, parameters: int) -> float:
    """rho of each of the copulas that share `nats` together."""
    return math.sqrt(-math.expm1(-2 * nats / parameters))


def draw(count: int, nats: float, parameters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(s, t), standard normal [count, K] each, sharing `nats`."""
    rng = np.random.default_rng(seed)
    s, noise = rng.standard_normal((2, count, parameters))
    return s, correlation(nats, parameters) * s + math.exp(-nats / parameters) * noise


def blobs(u: np.ndarray, size: int) -> np.ndarray:
    """A bright spot on black with centre u [B, 2]: float32 [B, 1, size, size] in [0, 1]."""
    centre = _MARGIN + (1 - 2 * _MARGIN) * u
    place = (np.arange(size) + 0.5) / size
    across, down = (np.exp(-0.5 * ((place - centre[:, k, None]) / _RADIUS) ** 2) for k in (0, 1))  # [B, size]
    return (down[:, None, :, None] * across[:, None, None, :]).astype(np.float32)


def rectangles(u: np.ndarray, size: int) -> np.ndarray:
    """A white rectangle on black, u [B, 4] its centre and sides, each pixel by its covered share."""
    centre = _MARGIN + (1 - 2 * _MARGIN) * u[:, :2]
    half = (_SIDES[0] + (_SIDES[1] - _SIDES[0]) * u[:, 2:]) / 2
    edges = np.arange(size + 1) / size
    low, high = (centre - half)[:, :, None], (centre + half)[:, :, None]
    covered = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * size  # [B, 2, size]
    return (covered[:, 1, None, :, None] * covered[:, 0, None, None, :]).astype(np.float32)


RENDER = {"blobs": blobs, "rectangles": rectangles}


def read(spec: Spec, root: Path) -> Source:
    """The first pictures of the pairs, the same for any I; `second` has the others."""
    return Source(Arrays(_pictures(spec.name, draw(COUNT, 0.0, PARAMETERS[spec.name])[0], spec.size)))


def _pictures(name: str, normal: np.ndarray, size: int) -> np.ndarray:
    return np.rint(255 * RENDER[name](_phi(normal), size)).astype(np.uint8)


def _phi(normal: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return ndtr(normal)


def second(spec: Spec, rows: np.ndarray, nats: float) -> Given:
    """The second picture of each row's pair as z, in [-1, 1], and q(t | x)."""
    parameters = PARAMETERS[spec.name]
    s, t = (part[rows] for part in draw(COUNT, nats, parameters))
    z = 2 * RENDER[spec.name](_phi(t), spec.size).reshape(len(rows), -1) - 1
    return Given(z, nats, normal=(correlation(nats, parameters) * s, np.full(s.shape, -2 * nats / parameters), t))
