"""mnist and fmnist: 28x28 grey pictures of ten classes, in IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from dataset.base import Arrays, Source, Spec, published
from dataset.files import by_torchvision, find_or_fetch
from utils import CommandError

MAX_BYTES = 2**31  # of an array
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

SPECS = (
    Spec("mnist", 32, 1, labels="class", label_names=tuple("0123456789"), factor_sizes=(10,),
         source="the four IDX files, plain or .gz, of https://ossci-datasets.s3.amazonaws.com/mnist/ into mnist/ or"
                " MNIST/raw/"),
    Spec("fmnist", 32, 1, labels="class", label_names=CLOTHES, factor_sizes=(10,), flip=True,
         source="the four IDX files, plain or .gz, of https://github.com/zalandoresearch/fashion-mnist (or of Debian's"
                " package dataset-fashion-mnist) into fmnist/ or FashionMNIST/raw/"),
)
# The folder and class that torchvision names each by, and a file that is there when the download is.
_TORCHVISION = {"mnist": "MNIST", "fmnist": "FashionMNIST"}
_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz",
    "fmnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
}


def read(spec: Spec, root: Path) -> Source:
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    places = [root / _TORCHVISION[spec.name] / "raw", root / spec.name] + [DEBIAN] * (spec.name == "fmnist")
    found = find_or_fetch(spec, root, places, names, _URLS[spec.name], by_torchvision(_TORCHVISION[spec.name]))
    images, labels = ([read_idx(found[name], axes) for name in names[k::2]] for k, axes in ((0, 3), (1, 1)))
    for name, pictures, targets in zip(names[::2], images, labels, strict=True):
        if len(pictures) != len(targets) or pictures.shape[1] != pictures.shape[2] or targets.max(initial=0) > 9:
            raise CommandError(f"{found[name]}: {len(pictures)} square images need as many labels of 0 to 9")
    splits = published(len(images[0]), len(images[1]))
    return Source(Arrays(np.concatenate(images)[:, None]), np.concatenate(labels).astype(np.int64)[:, None], splits)


def read_idx(path: Path, axes: int) -> np.ndarray:
    """An IDX file of bytes, plain or gzipped: uint8 with so many axes. Raises CommandError if it is anything else."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            head = file.read(4 + 4 * axes)
            if head[:4] != bytes([0, 0, 8, axes]):
                raise CommandError(f"{path} is not an IDX file of bytes with {axes} axes")
            shape = np.frombuffer(head, ">u4", offset=4).tolist()
            wanted = math.prod(shape)
            if len(shape) == axes and wanted > MAX_BYTES:
                raise CommandError(f"{path} is said to hold {wanted:,} bytes, more than {MAX_BYTES:,}")
            content = file.read(wanted + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CommandError(f"{path} cannot be read (truncated?): {error}") from None
    if len(shape) != axes or len(content) != wanted:
        raise CommandError(f"{path} is truncated, or longer than the {wanted} bytes that it is said to hold")
    return np.frombuffer(content, np.uint8).reshape(shape)
