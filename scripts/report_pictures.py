"""What a report's pictures show, computed from a checkpoint: samples, reconstructions, traversals, paths, codes.

Every part is uint8 pixels [.., H, W, C] or plain numbers, and knows nothing of HTML. The images are the first of the
test split; everything random is numbered, so that two experiments on one data set show the same images and noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import plots
from dataset import registry
from experiment import Trained, batches_of
from modes.latents import class_names, column_names, principal_plane
from modes.reconstructions import VALUES, decode_all, random_reconstructions, traversed
from modes.samples import drawer
from rng import Rng
from utils import CommandError

SAMPLES = 48
POINT_SAMPLES = 1_000
RECONSTRUCTED = 8
RANDOM_DRAWS = 2  # reconstructions from random x_T, below those from the inferred one
PATHS, PATH_POINTS = 3, 9
ENCODED = 400  # images of the latent plot
DIMENSIONS = 32  # that are shown, of a larger z
REACH = 2.0  # deviations of the codes on either side of their mean
FRAME_BYTES = 6_000_000  # of all frames, before compression: larger images are shrunk
FRAME_SIDE, THUMBNAIL_SIDE = 96, 40


@dataclass
class Traversal:
    """One image, each shown dimension of its z in turn set to VALUES values.

    dimensions  which, in the order of the frames: [D]
    values      what z_d is set to: [D, VALUES]
    frames      uint8 [D, kinds, VALUES, H, W, C]
    kinds       of x_T: 'inferred' and 'random', or nothing to choose for a VAE
    start       the values' index nearest to the image's own z_d: [D]
    change      root mean square difference of the first and the last frame of each kind, of the range: [D, kinds]
    """

    dimensions: np.ndarray
    values: np.ndarray
    frames: np.ndarray
    kinds: tuple[str, ...]
    start: np.ndarray
    change: np.ndarray


@dataclass
class Codes:
    """Codes of the first images of the test split, in the plane of their first two principal components.

    share       of the variance that the plane holds
    labels      [N, K] with a name each; value_names [K] are names of the values, () where they have none
    """

    plane: np.ndarray
    share: float
    thumbnails: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    value_names: list[tuple[str, ...]]


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [..., H, W, C], no larger than `side` pixels a side."""
    height, width, channels = pixels.shape[-3:]
    if max(height, width) <= side:
        return pixels
    flat = pixels.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    small = registry.resize(np.ascontiguousarray(flat), side).transpose(0, 2, 3, 1)
    return small.reshape(*pixels.shape[:-3], *small.shape[1:])


def samples(trained: Trained, latent: bool) -> tuple[np.ndarray, dict]:
    """Samples, pixels [N, H, W, C] or points [N, n], and the setting that they were drawn with.

    latent      draw z from the latent diffusion, and not from its prior
    """
    config = replace(trained.config, is_latent=latent, sample_steps=None)
    draw, setting = drawer(replace(trained, config=config), phases=False)
    points = len(trained.model.shape) == 1
    rng = Rng(config.r_seed, torch.arange(POINT_SAMPLES if points else SAMPLES, device=trained.device))
    with torch.no_grad():
        drawn = draw(rng)
    return drawn.cpu().numpy() if points else plots.to_uint8(drawn), setting


class Held:
    """The held-out images of an experiment and its two latents, as far as it has them."""

    def __init__(self, trained: Trained):
        self.trained, self.coder = trained, trained.autoencoder()
        self.dataset = trained.load_data("test")
        self.encodes = self.coder.has_z and trained.model.encoder is not None

    def images(self, count: int) -> Tensor:
        return self.dataset.batch(range(min(count, len(self.dataset))), self.trained.device)

    def reconstructions(self) -> dict[str, np.ndarray]:
        """Rows of pictures by name: the images, and what each way of decoding makes of them."""
        x = self.images(RECONSTRUCTED)
        z, x_T = self.coder.encode(x)
        rows = {"image": x}
        if x_T is None:
            rows["reconstruction"] = self.coder.decode(z, None)
        else:
            rows["from inferred x_T"] = self.coder.decode(z, x_T)
            if z is not None:
                draws = random_reconstructions(self.coder, z, x, RANDOM_DRAWS, self.trained.config.r_seed)
                rows |= {f"from random x_T ({i + 1})": draw for i, draw in enumerate(draws)}
        return {name: plots.to_uint8(row) for name, row in rows.items()}

    def paths(self) -> list[np.ndarray]:
        """From one image to another, [PATH_POINTS + 2, H, W, C] each: the image, the path's points, the other image."""
        x = self.images(2 * PATHS)
        pairs = [(x[i : i + 1], x[i + 1 : i + 2]) for i in range(0, len(x) - 1, 2)]
        return [plots.to_uint8(torch.cat([a, self.coder.between(a, b, PATH_POINTS), b])) for a, b in pairs]

    def codes(self) -> tuple[Tensor, Codes]:
        """z [N, a_dim] of the first images, and their plot."""
        rows = range(min(ENCODED, len(self.dataset)))
        parts, thumbnails = [], []
        with torch.no_grad():
            for _, x in batches_of(self.dataset, 100, self.trained.device, rows):
                parts.append(self.trained.model.encode(x).float().cpu())
                thumbnails.append(shrunk(plots.to_uint8(x), THUMBNAIL_SIDE) if x.dim() == 4 else None)
        z = torch.cat(parts)
        plane, share = principal_plane(z.double().numpy())
        labels, names = self.dataset.labels, column_names(self.dataset)
        found = labels[: len(z)] if names else np.zeros((len(z), 0), np.int64)
        values = list(class_names(self.dataset)) if names else []
        pixels = np.concatenate(thumbnails) if thumbnails[0] is not None else np.zeros((0, 1, 1, 1), np.uint8)
        return z, Codes(plane, share, pixels, found, names, values)

    def traversal(self, z: Tensor, order: np.ndarray) -> Traversal:
        """Of the first image of the split. `z` are codes of a split, whose spread is the range that is travelled.

        order   dimensions, the most interesting first; DIMENSIONS of them are shown
        """
        dimensions = np.sort(order[:DIMENSIONS])
        x = self.images(1)
        own, x_T = self.coder.encode(x)
        mean, deviation = z.mean(0).numpy(), z.std(0).numpy()
        values = mean[dimensions, None] + np.linspace(-REACH, REACH, VALUES) * deviation[dimensions, None]
        many = traversed(own, dimensions, values)
        noises = {"": None}
        if x_T is not None:
            rng = Rng(self.trained.config.r_seed, torch.arange(1, device=x.device))
            noises = {"inferred": x_T, "random": rng.normal("random x_T", *x.shape[1:])}
        size = self.trained.config.batch_size
        shapes, channels = x.shape[-2:], x.shape[1]
        frames = np.stack([plots.to_uint8(decode_all(self.coder, many, noise, size)).reshape(
            len(dimensions), VALUES, *shapes, channels) for noise in noises.values()], axis=1)
        ends = (frames[:, :, -1].astype(float) - frames[:, :, 0]) / 255
        side = int((FRAME_BYTES / (frames[..., 0, 0, 0].size * channels)) ** 0.5)
        return Traversal(dimensions, values, shrunk(frames, min(side, FRAME_SIDE)), tuple(noises),
                         np.abs(values - own[0].cpu().numpy()[dimensions, None]).argmin(1),
                         np.sqrt((ends**2).mean(axis=(2, 3, 4))))


def attempt(make):
    """What `make()` returns, or, where it cannot, the line that says why."""
    try:
        return make()
    except CommandError as error:
        return " ".join(str(error).split())


def of(trained: Trained, latent: bool, information: np.ndarray | None) -> dict[str, object]:
    """Every part that this model has, by name; a string says why one is missing.

    information     nats of each dimension, where they are measured: the order in which dimensions are chosen
    """
    found: dict[str, object] = {"samples": attempt(lambda: samples(trained, latent))}
    held = attempt(lambda: Held(trained))
    if isinstance(held, str):
        parts = ("reconstructions", "paths") + (("codes", "traversal") if trained.config.has_latent else ())
        return found | dict.fromkeys(parts, held)
    images = held.dataset.spec.kind == "image"
    if images:
        found["reconstructions"] = attempt(held.reconstructions)
        found["paths"] = attempt(held.paths)
    elif len(held.dataset.shape):
        found["data"] = held.images(POINT_SAMPLES).cpu().numpy()
    if held.encodes:
        codes = attempt(held.codes)
        if isinstance(codes, str):
            return found | {"codes": codes, "traversal": codes}
        z, found["codes"] = codes
        order = np.argsort(-(z.std(0).numpy() if information is None else information), kind="stable")
        if images:
            found["traversal"] = attempt(lambda: held.traversal(z, order))
    return found
