"""The one list of data sets, and what the rest of the suite asks of it.

    SPECS[name]                     what a set is, without touching a file
    load(name, split, root=...)     -> Dataset: uint8 images [N, C, H, W] or float32 points [N, n], with labels
    stream(dataset, lists, device)  batches for lists of indices, in the caller's order
    to_float(raw, levels)           uint8 -> float32 in [-1, 1]
    identity(dataset)               'COUNT:HASH' of the whole set, to tell one folder of images from another

A data set is a file of this package, named in FILES: its `SPECS`, a tuple, and its `read(spec, root)`, which returns a
`base.Source`, or for points its `draw(spec, split)`. Importing this file costs numpy alone, so that flags are checked
against SPECS at once: what a set needs beyond numpy is imported where it is read.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset import given, pairs
from dataset.base import SPLITS, Dataset, Spec, cut, identity, recolour, resize, to_float
from dataset.given import Recipe
from utils import CommandError

__all__ = ["SPECS", "SPLITS", "Dataset", "Spec", "identity", "load", "recolour", "resize", "stream", "to_float"]

FILES = (
    "digits", "shapes3d", "mnist", "cifar10", "celeba", "ffhq", "chairs", "dsprites", "published_3dshapes", "folder",
    "pairs", "points",
)
_MODULES = [importlib.import_module(f"dataset.{file}") for file in FILES]
SPECS: dict[str, Spec] = {spec.name: spec for module in _MODULES for spec in module.SPECS}
_READERS = {spec.name: module for module in _MODULES for spec in module.SPECS}

HELD_BYTES = 2 << 30  # a split up to this size is held in memory ...
HELD_COSTLY = 20_000  # ... if it is an array already, or has no more images than this to decode or render


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise CommandError(f"there is no split '{split}': {', '.join(SPLITS)}")


def load(name: str, split: str, *, root: str | Path = "./data", size: int | None = None, channels: int | None = None,
         dim: int | None = None, limit: int | None = None, z: Recipe | None = None) -> Dataset:
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
    z         how the z that comes with images is made: labels of theirs, or nats that a pair shares

    Raises CommandError for an unknown set or split, files that are absent or broken, sizes or channels without sense.
    """
    if name not in SPECS:
        raise CommandError(f"--dataset {name} is unknown; there are {', '.join(SPECS)}")
    check_split(split)
    if SPECS[name].kind == "points":
        return _load_points(SPECS[name], split, size, channels, dim, limit)
    spec, source = _open(SPECS[name], size, channels, Path(root))
    rows = (source.splits or cut(len(source.images)))[split][:limit]
    if not len(rows):
        raise CommandError(f"--dataset {name} has no images for the {split} split: {len(source.images)} in all")

    labels = None if source.labels is None else source.labels[rows]
    dataset = Dataset(spec, split, rows, None, labels, source=source.images)
    condition(dataset, z or Recipe())
    cheap = source.images.ready or len(rows) <= HELD_COSTLY
    if cheap and len(rows) * int(np.prod(dataset.shape)) <= HELD_BYTES:
        dataset.hold()
    return dataset


def counts(name: str, *, root: str | Path = "./data", size: int | None = None,
           channels: int | None = None) -> dict[str, int]:
    """How many rows each split of a set has; no image is read for it. Raises CommandError as `load` does."""
    if SPECS[name].kind == "points":
        return {split: len(_READERS[name].draw(SPECS[name], split)[0]) for split in SPLITS}
    _, source = _open(SPECS[name], size, channels, Path(root))
    splits = source.splits or cut(len(source.images))
    return {split: len(splits[split]) for split in SPLITS}


def condition(dataset: Dataset, recipe: Recipe) -> None:
    """Give a split of images the z that a recipe asks for."""
    if dataset.spec.name in pairs.PARAMETERS:
        channel = pairs.second(dataset.spec, dataset.rows, recipe.nats)
    elif recipe.labels:
        channel = given.of_labels(dataset.spec, dataset.labels, dataset.rows, recipe)
    else:
        return
    dataset.channel, dataset.given, dataset.exact_mi = channel, channel.z, channel.exact_mi


def _open(own: Spec, size: int | None, channels: int | None, root: Path):
    """The spec of a set at a size, with what its files say, and its `Source`."""
    spec = replace(own, size=own.size if size is None else size, channels=channels or own.channels)
    if spec.channels not in (1, 3):
        raise CommandError(f"--input_channels {spec.channels} makes no picture: 1 is grey, 3 is RGB")
    if spec.size < 1:
        raise CommandError(f"--input_size {spec.size} must be at least 1")
    if spec.size != own.size:
        spec = replace(spec, levels=256)  # interpolation leaves the lattice of the set's own
    if spec.size < 8 or spec.channels != own.channels:
        spec = replace(spec, entropy=None)  # images may coincide
    source = _READERS[own.name].read(spec, root)
    return replace(spec, **{key: value for key, value in source.details.items() if value}), source


def _load_points(spec: Spec, split: str, size, channels, dim, limit) -> Dataset:
    if size is not None or channels is not None:
        flag = "--input_size" if size is not None else "--input_channels"
        raise CommandError(f"{flag} is for images; --dataset {spec.name} holds points")
    spec = replace(spec, size=dim or spec.size)
    x, channel = _READERS[spec.name].draw(spec, split)
    x = x[:limit]
    dataset = Dataset(spec, split, np.arange(len(x)), x, known=f"{spec.name}:{spec.size}")
    if channel is not None:
        dataset.channel, dataset.given, dataset.exact_mi = channel, channel.z[:limit], channel.exact_mi
    return dataset


def stream(dataset: Dataset, index_lists, device="cpu", num_workers: int = 0):
    """`streaming.stream`, whose file imports torch: yields (indices, raw batch) for each list of indices."""
    from dataset.streaming import stream

    return stream(dataset, index_lists, device, num_workers)
