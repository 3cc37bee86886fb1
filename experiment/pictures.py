"""Pictures of a user's, of any kind and size, as a model sees them; and a model's pictures for the user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import plots
from dataset import files
from dataset.base import Spec, recolour, resize, to_float
from utils import CommandError


def as_batch(images, spec: Spec, shape: tuple[int, ...]) -> Tensor:
    """A float32 batch [B, *shape] in [-1, 1], as the data set `spec` prepares its own images.

    images  one or a list of: a path, a PIL image, an array or tensor of uint8 (0 .. 255) or of floats in [-1, 1], grey
            [H, W], with channels last (arrays) or first (tensors), alone or in a batch. Of points: floats [n] or [B, n]
    shape   (C, H, W) that the model takes, or (n,)

    A picture is cut to its central square (of the set's own crop; one that is smaller is cut already), resized with
    antialiasing and turned to grey or RGB.
    Raises CommandError for what is none of these, or unreadable.
    """
    if len(shape) == 1:
        return _points(images, shape[0])
    if isinstance(images, list | tuple):
        if not images:
            raise CommandError("no images: give one at least")
        return torch.cat([as_batch(one, spec, shape) for one in images])
    if isinstance(images, str | Path):
        return _from_pixels(_square(files.read_image(Path(images)), spec)[None], spec, shape)
    if hasattr(images, "getbands"):  # a PIL image
        pixels = np.asarray(files.upright_rgb(images)).transpose(2, 0, 1)
        return _from_pixels(_square(pixels, spec)[None], spec, shape)
    return _from_array(images, spec, shape)


def _points(values, count: int) -> Tensor:
    values = torch.as_tensor(values)
    values = values[None] if values.dim() == 1 else values
    if values.dim() != 2 or values.shape[1] != count or not values.is_floating_point():
        raise CommandError(f"points are floats [B, {count}], not {values.dtype} {list(values.shape)}")
    return values.float()


def _from_array(values, spec: Spec, shape: tuple[int, ...]) -> Tensor:
    first = isinstance(values, torch.Tensor)  # channels first, as tensors of images have them
    try:
        values = torch.as_tensor(values if first else np.array(values))
    except (TypeError, ValueError, RuntimeError):
        raise CommandError(f"images are paths, PIL images, arrays or tensors, not {type(values).__name__}") from None
    values = _channels_first(values, first)
    if values.dtype == torch.uint8:
        return _from_pixels(_square(values.numpy(), spec), spec, shape)
    if not values.is_floating_point():
        raise CommandError(f"pixels are uint8 (0 .. 255) or floats in [-1, 1], not {values.dtype}")
    if not (values.isfinite().all() and values.abs().max() <= 1 + 1e-4):
        raise CommandError(f"float pixels lie in [-1, 1], these in {values.min():g} .. {values.max():g}: scale them, "
                           "or give uint8")
    if tuple(values.shape[1:]) == shape:
        return values.float()
    return _from_pixels(_square(plots.to_uint8(values).transpose(0, 3, 1, 2), spec), spec, shape)


def _channels_first(values: Tensor, first: bool) -> Tensor:
    """[H, W], [H, W, C], [C, H, W] or a batch of the last two -> [B, C, H, W], C 1 or 3."""
    shape = list(values.shape)
    if values.dim() == 2:
        values, first = values[None], True
    values = values[None] if values.dim() == 3 else values
    for place in ((1, 3) if first else (3, 1)):
        if values.dim() == 4 and values.numel() and values.shape[place] in (1, 3):
            return values.movedim(place, 1).contiguous()
    raise CommandError(f"no images of shape {shape}: [H, W], [H, W, C], [C, H, W], or a batch "
                       "[B, H, W, C] or [B, C, H, W], of 1 or 3 channels")


def _square(pixels: np.ndarray, spec: Spec) -> np.ndarray:
    """The central square of [..., H, W]: of the set's own crop, or the largest of what is smaller than that."""
    return files.central_square(pixels, spec.crop if min(pixels.shape[-2:]) >= (spec.crop or 0) else None)


def _from_pixels(pixels: np.ndarray, spec: Spec, shape: tuple[int, ...]) -> Tensor:
    """Square uint8 [B, C, H, H] -> float32 [B, *shape]; on the set's own lattice where it has fewer levels."""
    x = to_float(torch.from_numpy(recolour(resize(pixels, shape[1]), shape[0])), 256)
    if spec.levels in (None, 256) or shape[1] != spec.size:
        return x
    half = (spec.levels - 1) / 2
    return ((x + 1) * half).round() / half - 1


def to_pictures(x: Tensor) -> list:
    """Images [B, C, H, W] in [-1, 1] as PIL images."""
    from PIL import Image

    return [Image.fromarray(one[:, :, 0] if one.shape[2] == 1 else one) for one in plots.to_uint8(x)]
