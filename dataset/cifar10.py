"""cifar10: 32x32 colour pictures of ten classes, in pickled batches that are read without running what is in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np

from dataset.base import Arrays, Source, Spec, published
from dataset.files import by_torchvision, find_or_fetch
from utils import UNREADABLE, CommandError, first_line

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MAX_BYTES = 2**28  # of a batch; the published ones are of 31 MB
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SPECS = (Spec("cifar10", 32, labels="class", label_names=OBJECTS, factor_sizes=(10,), flip=True, width=64,
              source=f"{URL}, unpacked into cifar-10-batches-py/"),)


def read(spec: Spec, root: Path) -> Source:
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    places = [root / "cifar-10-batches-py", root / "cifar10"]
    found = find_or_fetch(spec, root, places, names, URL, by_torchvision("CIFAR10"))
    images, labels = zip(*(read_batch(found[name]) for name in names), strict=True)
    splits = published(sum(map(len, images[:5])), len(images[5]))
    return Source(Arrays(np.concatenate(images)), np.concatenate(labels)[:, None], splits)


# ---------------------------------------------------------------------------------------------------------------------
# Pickles, read as data: numpy never sees one, for its own unpickling believes the pointers and flags in a file


class _Type:
    """What stands for numpy's dtype: its name, of numbers alone; whatever else a file says of it is not looked at."""

    def __init__(self, name="", *_):
        name = name.decode("latin1") if isinstance(name, bytes) else name
        if name not in ("u1", "i1", "i2", "i4", "i8"):
            raise pickle.UnpicklingError(f"an array of {name!r} has no place in it")
        self.name = name

    def __setstate__(self, state):
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("|", "<", b"|", b"<"):
            raise pickle.UnpicklingError("only little-endian numbers have a place in it")


class _Array:
    """What stands for numpy's ndarray, until its bytes are known to be as many as its shape asks for."""

    values = np.empty(0, np.uint8)

    def __setstate__(self, state):
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Type) or not isinstance(content, bytes) or by_columns not in (False, 0):
            raise pickle.UnpicklingError("only arrays of numbers, row by row, have a place in it")
        self.values = np.frombuffer(content, f"<{kind.name}").reshape([int(extent) for extent in shape])


class _BatchUnpickler(pickle._Unpickler):
    """Python's own unpickler, which bounds-checks everything, without any class that could run something."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return self._ALLOWED[module, name]


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 32, 32] and int64 [N]."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CommandError(f"{path} is larger than {MAX_BYTES:,} bytes: it is no batch of CIFAR-10")
        record = _BatchUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images, labels = (_values(record[name]) for name in (b"data", b"labels"))
    except UNREADABLE as error:
        raise CommandError(f"{path} is not a batch of CIFAR-10: {type(error).__name__}: {first_line(error)}") from None
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072) or labels.ndim != 1:
        raise CommandError(f"{path}: data must be uint8 [{len(labels)}, 3072], it is {images.dtype} {images.shape}")
    if wrong := [label for label in labels.tolist() if not 0 <= label <= 9]:
        raise CommandError(f"{path}: labels are 0 to 9, one is {wrong[0]}")
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _values(found) -> np.ndarray:
    """An array of a pickle, or a list of whole numbers."""
    if isinstance(found, _Array):
        return found.values
    if isinstance(found, list) and all(type(value) is int and abs(value) < 2**63 for value in found):
        return np.array(found, dtype=np.int64)
    raise pickle.UnpicklingError("data and labels must be arrays, or lists of whole numbers")
