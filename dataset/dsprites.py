"""dsprites: binary 64x64 sprites of six factors, in one .npz."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from dataset.base import Arrays, Source, Spec
from dataset.files import by_url, find_or_fetch
from utils import CommandError

FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
URL = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{FILE}"

SPECS = (
    Spec("dsprites", 32, 1, labels="factors", label_names=("color", "shape", "scale", "orientation", "posX", "posY"),
         factor_sizes=(1, 3, 6, 40, 32, 32),
         source="the .npz of https://github.com/google-deepmind/dsprites-dataset into dsprites/"),
)


def read(spec: Spec, root: Path) -> Source:
    path = find_or_fetch(spec, root, [root / "dsprites", root], [FILE], URL, by_url(URL, "dsprites"))[FILE]
    try:
        with np.load(path, allow_pickle=False) as archive:  # its `metadata` is a pickle, and stays closed
            images, labels = archive["imgs"], archive["latents_classes"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CommandError(f"{path} is not the .npz of dSprites: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2] or images.max() > 1:
        raise CommandError(f"{path}: imgs must be uint8 [N, H, H] of 0 and 1, it is {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images), 6):
        raise CommandError(f"{path}: latents_classes must be integers [{len(images)}, 6], it is {labels.shape}")
    images *= 255
    return Source(Arrays(images[:, None]), labels.astype(np.int64))
