"""dsprites: binary 64x64 sprites of six factors, in one .npz."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from dataset.base import Arrays, Source, Spec
from dataset.files import by_url, find_or_fetch
from utils import UNREADABLE, CommandError, first_line

FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
MAX_BYTES = 2**32  # of an array; the published images take 3.0 GB
URL = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{FILE}"

SPECS = (
    Spec("dsprites", 32, 1, labels="factors", label_names=("color", "shape", "scale", "orientation", "posX", "posY"),
         factor_sizes=(1, 3, 6, 40, 32, 32),
         source="the .npz of https://github.com/google-deepmind/dsprites-dataset into dsprites/"),
)


def read(spec: Spec, root: Path) -> Source:
    path = find_or_fetch(spec, root, [root / "dsprites", root], [FILE], URL, by_url(URL, "dsprites"))[FILE]
    images, labels = read_arrays(path, {"imgs": "u1", "latents_classes": "i8"})
    if images.ndim != 3 or images.shape[1] != images.shape[2] or images.max(initial=0) > 1:
        raise CommandError(f"{path}: imgs must be uint8 [N, H, H] of 0 and 1, it is {images.dtype} {images.shape}")
    if labels.shape != (len(images), 6):
        raise CommandError(f"{path}: latents_classes must be integers [{len(images)}, 6], it is {labels.shape}")
    if (labels < 0).any() or (labels >= spec.factor_sizes).any():
        raise CommandError(f"{path}: latents_classes must be below {spec.factor_sizes}")
    images *= 255
    return Source(Arrays(images[:, None]), labels)


def read_arrays(path: Path, kinds: dict[str, str]) -> list[np.ndarray]:
    """Arrays of an .npz by name, each of the kind that is named; their sizes are looked at before they are read.

    The published `metadata`, a pickle, stays closed.
    """
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name, kind in kinds.items():
                with archive.open(f"{name}.npy") as file:
                    version = np.lib.format.read_magic(file)
                    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, by_columns, dtype = header[version](file)
                    size = math.prod(shape) * dtype.itemsize
                    if dtype != np.dtype(kind) or by_columns:
                        raise CommandError(f"{path}: {name} must be {np.dtype(kind)}, row by row, it is {dtype}")
                    if size > MAX_BYTES:
                        raise CommandError(f"{path}: {name} {shape} is larger than {MAX_BYTES:,} bytes")
                    found.append(_read_into(np.empty(shape, dtype), file))
    except UNREADABLE as error:
        raise CommandError(f"{path} is not the .npz of dSprites: {first_line(error)}") from None
    return found


def _read_into(array: np.ndarray, file) -> np.ndarray:
    """Fill an array with a file's bytes; memory is taken as they come. Raises ValueError where they are too few."""
    left = memoryview(array.reshape(-1).view(np.uint8))
    while len(left):
        count = file.readinto(left)
        if not count:
            raise ValueError(f"{len(left)} bytes are missing")
        left = left[count:]
    return array
