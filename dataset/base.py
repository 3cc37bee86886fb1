"""What every data set is made of: its `Spec`, the `Source` that its file reads, and a `Dataset`, one split of it.

Importing this file costs numpy alone, so that flags are checked against the specs at once.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from utils import CommandError, progress_bar

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")
HASHED_ROWS = 4_096  # of an array, at most, for its identity


@dataclass(frozen=True)
class Spec:
    """What a set is. `Dataset.spec` is the same record, resolved: with the size, levels and labels actually there."""

    name: str
    size: int  # pixels a side; coordinates of a point
    channels: int = 3
    levels: int | None = 256  # values lie on this many equal steps; None for points
    labels: str = "none"  # 'class' | 'attributes' | 'factors' | 'none'
    label_names: tuple[str, ...] = ()  # of classes, attributes or factors; () where only the files say
    factor_sizes: tuple[int, ...] = ()  # number of values of each label column; () where only the files say
    value_names: tuple[tuple[str, ...], ...] = ()  # of each column's values; () where they have none
    flip: bool = False  # does a mirror image belong to the set?
    crop: int | None = None  # pixels a side of the central square that counts; None: the largest one
    width: int = 32  # base channels of the networks; hidden units for points
    depth: int = 4  # levels of the networks; layers for points
    kind: str = "image"  # 'image' | 'points'
    source: str = "built in"  # where to get it, and where to put it under --data_dir
    exact: bool = False  # is log p(x) known?
    gives_z: bool = False  # does each row bring the z it is conditioned on?
    z_is_image: bool = False  # is that z a second image of the same size?
    entropy: float | None = None  # H(x) in nats, where x is uniform over images that are known to differ


@dataclass(frozen=True)
class Given:
    """z of some rows of a set, and how it hangs on x, where that is known.

    z           float32 [N, n], as a network takes it
    exact_mi    I(x; z) in nats
    normal      (mean, log-variance, value) [N, d] each: the value, from which z follows one to one, is normal given x
    classes     (sent [N, K], came [N, K], sizes, error, independent): labels sent through symmetric channels
    """

    z: np.ndarray
    exact_mi: float | None = None
    normal: tuple | None = None
    classes: tuple | None = None
    columns: tuple[int, ...] = ()  # which labels those are


class Images(Protocol):
    """Where the images of a whole set lie: `Arrays` here, `files.Files`, or a class of the set's own."""

    ready: bool  # is it an array in memory already?

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        """uint8 [B, C, size, size]. Raises CommandError for a file that cannot be read."""

    def identity(self) -> str:
        """What changes when the images do; cheap: no image is decoded for it."""


@dataclass(frozen=True)
class Source:
    """A whole set, before a split is taken.

    images   where they lie
    labels   int64 [N, K] or None
    splits   official ones, as rows; None: cut at random
    details  fields of the Spec that only the files say: labels, label_names, factor_sizes
    """

    images: Images
    labels: np.ndarray | None = None
    splits: dict[str, np.ndarray] | None = None
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Arrays:
    """Images in memory, uint8 [N, C, H, W] of `levels` values."""

    values: np.ndarray
    levels: int = 256
    ready = True

    def __post_init__(self):
        if self.values.dtype != np.uint8 or self.values.ndim != 4 or self.values.shape[1] not in (1, 3):
            raise CommandError(f"images are uint8 [N, C, H, W], C 1 or 3, not {self.values.dtype} {self.values.shape}")

    def __len__(self) -> int:
        return len(self.values)

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        return resize(self.values[rows], size, self.levels)

    def identity(self) -> str:
        return array_identity(self.values)


def array_identity(values: np.ndarray) -> str:
    """The count, and a hash of the shape and of at most HASHED_ROWS rows, evenly spaced."""
    some = values[:: -(-len(values) // HASHED_ROWS)] if len(values) else values
    return text_identity(len(values), f"{values.dtype} {values.shape}", np.ascontiguousarray(some).tobytes())


def text_identity(count: int, *parts: str | bytes) -> str:
    """'COUNT:HASH' of some texts or bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return f"{count}:{digest.hexdigest()[:16]}"


# ---------------------------------------------------------------------------------------------------------------------
# A split of a set


@dataclass(eq=False)
class Dataset:
    """One split of one set. Rows are numbered 0 .. len - 1; evaluation and training read the same rows."""

    spec: Spec
    split: str
    rows: np.ndarray  # int64 [N]: which rows of the source
    images: np.ndarray | None  # uint8 [N, C, H, W], or float32 [N, n] points; None where they are read on demand
    labels: np.ndarray | None = None  # int64 [N, K]; a class is K = 1, attributes are 0 or 1
    given: np.ndarray | None = None  # float32 [N, n]: the z that comes with each row
    channel: Given | None = None  # the same with what is known of it
    source: Images | None = None  # where the images come from; dropped once they are held, if it is an array itself
    exact_mi: float | None = None  # I(x; z) in nats, where z is given
    known: str | None = None  # the whole set's identity, where the source is dropped
    _resident: dict = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (n,) for points."""
        spec = self.spec
        return (spec.size,) if spec.kind == "points" else (spec.channels, spec.size, spec.size)

    @property
    def levels(self) -> int | None:
        return self.spec.levels

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.spec.label_names

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        return self.spec.factor_sizes

    def raw(self, indices) -> torch.Tensor:
        """uint8 [B, C, H, W], or float32 [B, n] points, on the CPU. Raises CommandError for an unreadable file."""
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(self.images[indices] if self.images is not None else self.read(indices))

    def batch(self, indices, device="cpu", flip: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [B, *shape]: images in [-1, 1], points as they are; rows where `flip` [B] is true are mirrored."""
        return to_float(self.raw(indices).to(device), self.levels, flip)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """Exact log p(x) of points [B, n], whatever the split: float64 [B], nats."""
        from dataset import points

        return points.law(self.spec.name, self.spec.size).log_density(x)

    def resident(self, device) -> torch.Tensor:
        """The whole split on a device, copied once: uint8 [N, C, H, W] or float32 [N, n]."""
        import torch

        if str(device) not in self._resident:
            self._resident[str(device)] = torch.from_numpy(self.images).to(device)
        return self._resident[str(device)]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images of the source at this split's size and channels: uint8 [B, C, H, W]."""
        return recolour(self.source.read(self.rows[indices], self.spec.size), self.spec.channels)

    def hold(self) -> None:
        """Read everything once, in threads: decoding lets go of the interpreter."""
        parts = np.array_split(np.arange(len(self)), -(-len(self) // 256))
        bar = progress_bar(total=len(self), desc=f"reading {self.spec.name} ({self.split})", unit="image", delay=2)
        self.images = np.empty((len(self), *self.shape), dtype=np.uint8)
        with bar, ThreadPoolExecutor() as threads:
            for part, images in zip(parts, threads.map(self.read, parts), strict=True):
                self.images[part] = images
                bar.update(len(part))
        if self.source.ready:
            self.known, self.source = self.source.identity(), None


def identity(dataset: Dataset) -> str:
    """The identity of the whole set that a split belongs to, the same for each of its splits and at every size.

    'COUNT:HASH'; for image files the hash is of their names below the folder and their sizes in bytes, for arrays of
    some of their values. Labels are no part of it. Milliseconds, and a look at every file's size.
    """
    if dataset.known is None:
        dataset.known = array_identity(dataset.images) if dataset.source is None else dataset.source.identity()
    return dataset.known


@lru_cache
def note(text: str) -> None:
    """Print what was found and what is made of it, once in a process for all splits."""
    import distributed

    distributed.say(f"note: {text}")


def cut(count: int, val: float = 0.1, test: float = 0.1) -> dict[str, np.ndarray]:
    """Split `count` rows at random, always in the same way; a val or test above 0 is never empty by rounding."""
    order = np.random.RandomState(0).permutation(count)  # the older generator: frozen across versions of numpy
    tests, vals = (max(1, round(count * part)) if part else 0 for part in (test, val))
    return {"test": order[:tests], "val": order[tests : tests + vals], "train": order[tests + vals :]}


def published(train: int, test: int) -> dict[str, np.ndarray]:
    """Rows of a set published as a training and a test part: the last tenth of the training part validates."""
    first = train - max(1, train // 10)
    return {"train": np.arange(first), "val": np.arange(first, train), "test": np.arange(train, train + test)}


# ---------------------------------------------------------------------------------------------------------------------
# Pixels


def resize(images: np.ndarray, size: int, levels: int = 256) -> np.ndarray:
    """Square uint8 images [B, C, H, H] -> uint8 [B, C, size, size], antialiased; stretched to 256 levels if changed."""
    if images.shape[-1] == size:
        return np.ascontiguousarray(images)
    import torch

    values = torch.from_numpy(np.ascontiguousarray(images)).float() * (255 / (levels - 1))
    values = torch.nn.functional.interpolate(values, (size, size), mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8).numpy()


def recolour(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [B, C, H, W] as grey (ITU-R BT.601 luma) or as RGB."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=1)
    luma = np.tensordot(images, np.array([0.299, 0.587, 0.114]), axes=(1, 0))[:, None]
    return np.rint(luma).astype(np.uint8)


def to_float(raw: torch.Tensor, levels: int | None, flip: torch.Tensor | None = None) -> torch.Tensor:
    """Lattice values 0 .. levels - 1 -> float32 2 v / (levels - 1) - 1; points (levels None) as they are.

    flip  bool [B]: mirror these rows left to right. Evaluation passes none.
    """
    x = raw.float()
    if levels is not None:
        x = x / ((levels - 1) / 2) - 1
    if flip is not None:
        x = x.flip(-1).where(flip.to(x.device)[:, None, None, None], x)
    return x
