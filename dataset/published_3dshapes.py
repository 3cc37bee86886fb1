"""3dshapes: the published set of 480,000 pictures of six factors, in one HDF5 file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset import shapes3d
from dataset.base import Source, Spec, resize, text_identity
from dataset.files import by_url, find_or_fetch
from utils import CommandError

FILE = "3dshapes.h5"
URL = f"https://storage.googleapis.com/3d-shapes/{FILE}"

SPECS = (Spec("3dshapes", 64, labels="factors", label_names=shapes3d.FACTORS, factor_sizes=shapes3d.FACTOR_SIZES,
              source=f"{URL} into 3dshapes/"),)


def read(spec: Spec, root: Path) -> Source:
    path = find_or_fetch(spec, root, [root / "3dshapes", root], [FILE], URL, by_url(URL, "3dshapes"))[FILE]
    with _open_h5(path) as file:
        for name in ("images", "labels"):
            if name not in file:
                raise CommandError(f"{path} has no array '{name}'")
        images, values = file["images"], file["labels"][()]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise CommandError(f"{path}: images must be uint8 [N, H, H, 3], it is {images.dtype} {images.shape}")
        if values.shape != (len(images), 6) or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise CommandError(f"{path}: labels must be finite numbers [{len(images)}, 6], it is {values.shape}")
        count = len(images)
    factors = [np.unique(column, return_inverse=True)[1] for column in values.T]  # values, in order -> 0, 1, 2 ...
    return Source(H5Rows(path, count), np.stack(factors, axis=1).astype(np.int64))


@dataclass(frozen=True)
class H5Rows:
    """The array `images` of an HDF5 file, uint8 [N, H, W, C]; opened at each read, so that processes share nothing."""

    path: Path
    count: int
    ready = False

    def __len__(self) -> int:
        return self.count

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        with _open_h5(self.path) as file:
            images = np.stack([file["images"][row] for row in rows])
        return resize(images.transpose(0, 3, 1, 2), size)

    def identity(self) -> str:
        some = self.read(np.linspace(0, self.count - 1, 4).astype(np.int64), 64)
        return text_identity(self.count, str(self.path.stat().st_size), some.tobytes())


def _open_h5(path: Path):
    try:
        import h5py
    except ImportError:
        raise CommandError(f"{path} is read with h5py: pip install h5py") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise CommandError(f"{path} is not a readable .h5 file: {error}") from None
