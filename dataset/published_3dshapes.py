"""3dshapes: the published set of 480,000 pictures of six factors, in one HDF5 file."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset import shapes3d
from dataset.base import Source, Spec, resize, text_identity
from dataset.files import by_url, find_or_fetch
from utils import UNREADABLE, CommandError, first_line

FILE = "3dshapes.h5"
MAX_SIDE, MAX_COUNT = 1_024, 10_000_000
URL = f"https://storage.googleapis.com/3d-shapes/{FILE}"

SPECS = (Spec("3dshapes", 64, labels="factors", label_names=shapes3d.FACTORS, factor_sizes=shapes3d.FACTOR_SIZES,
              source=f"{URL} into 3dshapes/"),)


def read(spec: Spec, root: Path) -> Source:
    path = find_or_fetch(spec, root, [root / "3dshapes", root], [FILE], URL, by_url(URL, "3dshapes"))[FILE]
    with opened(path) as file:
        images, values = array_of(file, "images"), array_of(file, "labels")
        side = images.shape[1] if images.ndim == 4 else 0
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or not 1 <= side <= MAX_SIDE:
            raise CommandError(f"{path}: images must be uint8 [N, H, H, 3], it is {images.dtype} {images.shape}")
        count = len(images)
        if values.shape != (count, 6) or values.dtype.kind not in "iuf" or count > MAX_COUNT:
            raise CommandError(f"{path}: labels must be numbers [{count}, 6], it is {values.dtype} {values.shape}")
        values = values[()]
    if not np.isfinite(values).all():
        raise CommandError(f"{path}: labels must be finite numbers")
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
        with opened(self.path) as file:
            images = np.stack([array_of(file, "images")[row] for row in rows])
        return resize(images.transpose(0, 3, 1, 2), size)

    def identity(self) -> str:
        some = self.read(np.linspace(0, self.count - 1, 4).astype(np.int64), 64)
        return text_identity(self.count, str(self.path.stat().st_size), some.tobytes())


@contextlib.contextmanager
def opened(path: Path):
    """An HDF5 file. What cannot be read in it, then or later, is a CommandError."""
    try:
        import h5py
    except ImportError:
        raise CommandError(f"{path} is read with h5py: pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UNREADABLE as error:
        raise CommandError(f"{path} is not a readable .h5 file: {first_line(error)}") from None


def array_of(file, name: str):
    """An array that lies in the file itself. Raises CommandError for groups, links, and pixels kept in other files."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise CommandError(f"{file.filename} has no array '{name}' of its own")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise CommandError(f"{file.filename}: '{name}' is no array but a {type(found).__name__.lower()}")
    if found.external or found.is_virtual:
        raise CommandError(f"{file.filename}: '{name}' is kept in other files, which are not looked at")
    return found
