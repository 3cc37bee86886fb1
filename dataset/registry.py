"""Data: one registry of sets, three named splits of each, and batches of them.

    SPECS[name]                     what a set is, without touching a file
    load(name, split, root=...)     -> Dataset: uint8 images [N, C, H, W] or float32 points [N, n], with labels
    stream(dataset, lists, device)  batches for lists of indices, in the caller's order
    to_float(raw, levels)           uint8 -> float32 in [-1, 1]

Importing this file costs numpy alone, so that flags are checked against SPECS at once. File formats live in
`image_files.py`, the rendered shapes in `shapes3d.py`, the points and their exact densities in `points.py`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset import files, shapes3d
from dataset.files import Arrays, Source
from utils import CommandError

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")

HELD_BYTES = 2 << 30  # a split up to this size is held in memory ...
HELD_COSTLY = 20_000  # ... if it is an array already, or has no more images than this to decode or render


@dataclass(frozen=True)
class Spec:
    """What a set is. `Dataset.spec` is the same record, resolved: with the size, levels and labels actually there."""

    name: str
    size: int  # pixels a side; coordinates of a point
    channels: int
    levels: int | None  # values lie on this many equal steps; None for points
    labels: str  # 'class' | 'attributes' | 'factors' | 'none'
    label_names: tuple[str, ...] = ()  # of classes, attributes or factors; () when only the files tell
    factor_sizes: tuple[int, ...] = ()  # number of values of each label column; () when only the files tell
    flip: bool = False  # does a mirror image belong to the set?
    width: int = 32  # base channels of the networks; hidden units for points
    depth: int = 4  # levels of the networks; layers for points
    kind: str = "image"  # 'image' | 'points'
    source: str = "built in"  # where to get it, and where to put it under --data_dir
    exact: bool = False  # is log p(x) known?
    gives_z: bool = False  # does each row bring the z it is conditioned on?


def _points(name: str) -> Spec:
    return Spec(name, 2, 1, None, "none", width=96, depth=3, kind="points", exact=True, gives_z=name == "mvn")


_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SHAPES = {"label_names": shapes3d.FACTORS, "factor_sizes": shapes3d.FACTOR_SIZES}

SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("digits", 8, 1, 17, "class", _DIGITS, (10,), width=16, depth=3),
        Spec("shapes3d", 64, 3, 256, "factors", **_SHAPES),
        Spec("mnist", 32, 1, 256, "class", _DIGITS, (10,), source=files.MNIST),
        Spec("fmnist", 32, 1, 256, "class", _CLOTHES, (10,), flip=True, source=files.FMNIST),
        Spec("cifar10", 32, 3, 256, "class", _OBJECTS, (10,), flip=True, width=64, source=files.CIFAR10),
        Spec("celeba", 64, 3, 256, "attributes", flip=True, width=64, source=files.CELEBA),
        Spec("ffhq", 64, 3, 256, "attributes", flip=True, width=64, source=files.FFHQ),
        Spec("chairs", 64, 3, 256, "none", flip=True, source=files.CHAIRS),
        Spec(
            "dsprites", 32, 1, 256, "factors", ("color", "shape", "scale", "orientation", "posX", "posY"),
            (1, 3, 6, 40, 32, 32), source=files.DSPRITES,
        ),
        Spec("3dshapes", 64, 3, 256, "factors", **_SHAPES, source=files.SHAPES3D_FILE),
        Spec("folder", 64, 3, 256, "none", flip=True, source=files.FOLDER),
        *map(_points, ("dino", "moons", "scg", "line", "circle", "mixture", "mvn")),
    )
}


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
    given: np.ndarray | None = None  # float32 [N, n]: the z that comes with a point (mvn)
    source: Source | None = None  # where images that are not held come from
    exact_mi: float | None = None  # I(x; z) in nats, where z is given
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
        return torch.from_numpy(self.images[indices] if self.images is not None else self._read(indices))

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

    def _read(self, indices: np.ndarray) -> np.ndarray:
        """Images of the source at this split's size and channels: uint8 [B, C, H, W]."""
        return recolour(self.source.images.read(self.rows[indices], self.spec.size), self.spec.channels)

    def _hold(self) -> None:
        """Read everything once, in threads: decoding lets go of the interpreter."""
        from tqdm import tqdm

        parts = np.array_split(np.arange(len(self)), -(-len(self) // 256))
        bar = tqdm(total=len(self), desc=f"reading {self.spec.name} ({self.split})", unit="image", delay=2)
        self.images = np.empty((len(self), *self.shape), dtype=np.uint8)
        with bar, ThreadPoolExecutor() as threads:
            for part, images in zip(parts, threads.map(self._read, parts), strict=True):
                self.images[part] = images
                bar.update(len(part))
        self.source = None


def load(name: str, split: str, *, root: str | Path = "./data", size: int | None = None, channels: int | None = None,
         dim: int | None = None, limit: int | None = None) -> Dataset:
    """One split of a set.

    name      a key of SPECS
    split     'train', 'val' or 'test': disjoint, the same on every call. Official splits where they exist (without an
              official validation split, the last tenth of the training part serves), else a fixed shuffle cut 80/10/10
              (digits 60/10/30).
    root      --data_dir; for `folder` the folder of images itself
    size      pixels a side when not the set's own (antialiased, rounded to uint8 once)
    channels  1 or 3 when not the set's own
    dim       `mvn` alone: coordinates of x and of z (2)
    limit     the first so many rows of the split

    Raises CommandError for an unknown set, files that are absent or broken, sizes or channels that make no sense.
    """
    if name not in SPECS:
        raise CommandError(f"--dataset {name} is unknown; there are {', '.join(SPECS)}")
    spec = SPECS[name]
    if spec.kind == "points":
        return _load_points(spec, split, size, channels, dim, limit)
    spec, source = _open(replace(spec, size=size or spec.size, channels=channels or spec.channels), Path(root))
    rows = (source.splits or cut(len(source.images)))[split][:limit]
    if not len(rows):
        raise CommandError(f"--dataset {name} has no images for the {split} split: {len(source.images)} in all")

    labels = None if source.labels is None else source.labels[rows]
    dataset = Dataset(spec, split, rows, None, labels, source=source)
    cheap = source.images.ready or len(rows) <= HELD_COSTLY
    if cheap and len(rows) * int(np.prod(dataset.shape)) <= HELD_BYTES:
        dataset._hold()
    return dataset


def _open(spec: Spec, root: Path) -> tuple[Spec, Source]:
    """The files of a set, and its spec with what the files tell."""
    if spec.channels not in (1, 3):
        raise CommandError(f"--input_channels {spec.channels} makes no picture: 1 is grey, 3 is RGB")
    if spec.size < 1:
        raise CommandError(f"--input_size {spec.size} must be at least 1")
    if spec.name == "digits":
        source = _digits()
        if spec.size != SPECS["digits"].size:
            spec = replace(spec, levels=256)
    elif spec.name == "shapes3d":
        source = Source(_Rendered(), shapes3d.factors(np.arange(shapes3d.COUNT)))
    else:
        source = files.READERS[spec.name](root)
    told = {key: value for key, value in source.told.items() if value}
    return replace(spec, **told), source


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 levels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]  # [N, 1, 8, 8]
    return Source(Arrays(images, levels=17), bunch.target.astype(np.int64)[:, None], cut(len(images), 0.1, 0.3))


class _Rendered:
    """All pictures of shapes3d.py, drawn when asked for."""

    ready = False

    def __len__(self) -> int:
        return shapes3d.COUNT

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        return shapes3d.render(rows, size)


def _load_points(spec: Spec, split: str, size, channels, dim, limit) -> Dataset:
    if size is not None or channels is not None:
        flag = "--input_size" if size is not None else "--input_channels"
        raise CommandError(f"{flag} is for images; --dataset {spec.name} holds points")
    from dataset import points

    dim = dim or spec.size
    x, given = points.draw(spec.name, split, dim)
    given = None if given is None else given[:limit]
    mi = None if given is None else points.gaussian_mutual_information(points.mvn_covariance(dim), dim)
    x = x[:limit]
    return Dataset(replace(spec, size=dim), split, np.arange(len(x)), x, given=given, exact_mi=mi)


def cut(count: int, val: float = 0.1, test: float = 0.1) -> dict[str, np.ndarray]:
    """Split `count` rows at random, always in the same way; val and test are never empty by rounding."""
    order = np.random.RandomState(0).permutation(count)  # the older generator: frozen across versions of numpy
    tests, vals = (max(1, round(count * part)) for part in (test, val))
    return {"test": order[:tests], "val": order[tests : tests + vals], "train": order[tests + vals :]}


def recolour(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [B, C, H, W] as grey (ITU-R BT.601 luma) or as RGB."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=1)
    luma = np.tensordot(images, np.array([0.299, 0.587, 0.114]), axes=(1, 0))[:, None]
    return np.rint(luma).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Batches


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


def stream(dataset: Dataset, index_lists, device="cpu", num_workers: int = 0):
    """Yield (indices int64 [B] on the CPU, raw [B, *shape] on `device`) for each list of indices, in the given order.

    A split that is held is copied to the device once and indexed there; another is read by `num_workers` processes,
    ahead of the caller. Nothing is drawn from a global generator. Raises CommandError for a file that cannot be read.
    """
    import torch

    if dataset.images is not None:
        held = dataset.resident(device)
        pinned = torch.device(device).type == "cuda"
        for indices in index_lists:
            indices = torch.as_tensor(indices, dtype=torch.int64)
            places = indices.pin_memory().to(device, non_blocking=True) if pinned else indices
            yield indices, held[places]
        return
    pinned = torch.device(device).type == "cuda"
    loader = torch.utils.data.DataLoader(
        _Lists(dataset), sampler=index_lists, batch_size=None, num_workers=num_workers, pin_memory=pinned,
        generator=torch.Generator(),
    )
    for indices, raw in loader:
        if isinstance(raw, CommandError):
            raise raw
        yield indices, raw.to(device, non_blocking=pinned)


@dataclass
class _Lists:
    """A map from a list of indices to a batch. An error travels as a value: a worker would wrap it in a traceback."""

    dataset: Dataset

    def __getitem__(self, indices):
        import torch

        indices = torch.as_tensor(indices, dtype=torch.int64)
        try:
            return indices, self.dataset.raw(indices)
        except CommandError as error:
            return indices, error
