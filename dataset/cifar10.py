"""cifar10: 32x32 colour pictures of ten classes, in pickled batches that are read without running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from dataset.base import Arrays, Source, Spec, published
from dataset.files import by_torchvision, find_or_fetch
from utils import CommandError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
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


class _ArrayUnpickler(pickle.Unpickler):
    """Knows how to rebuild arrays, and nothing that could run."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return self._ALLOWED[module, name]


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 32, 32] and int64 [N]."""
    try:
        with open(path, "rb") as file:
            record = _ArrayUnpickler(file, encoding="bytes").load()
        images, labels = record[b"data"], np.asarray(record[b"labels"], dtype=np.int64)
    except (OSError, EOFError, pickle.UnpicklingError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is not a batch of CIFAR-10: {type(error).__name__}: {error}") from None
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
        raise CommandError(f"{path}: data must be uint8 [{len(labels)}, 3072], it is {images.dtype} {images.shape}")
    return images.reshape(-1, 3, 32, 32), labels
