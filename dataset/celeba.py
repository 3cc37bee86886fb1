"""celeba: aligned faces of 178x218, their central 148 pixels; 40 binary attributes; the official partition."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dataset.base import SPLITS, Source, Spec
from dataset.files import Files, by_torchvision, find_or_fetch
from dataset.labels import read_lines
from utils import CommandError

SPECS = (
    Spec("celeba", 64, labels="attributes", flip=True, crop=148, width=64,
         source="img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt of"
                " https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into celeba/"),
)


def read(spec: Spec, root: Path) -> Source:
    folder, names = root / "celeba", ["list_attr_celeba.txt", "list_eval_partition.txt"]
    found = find_or_fetch(spec, root, [folder], names, "https://drive.google.com", by_torchvision("CelebA"))
    attributes = tuple(read_lines(found[names[0]])[1].split())
    table = read_list(found[names[0]], 2, len(attributes), {-1, 1})
    parts = read_list(found[names[1]], 0, 1, {0, 1, 2})
    if table.keys() != parts.keys():
        raise CommandError(f"{folder}: {names[0]} and {names[1]} do not list the same files")
    pictures = folder / "img_align_celeba"
    absent = table.keys() - set(os.listdir(pictures) if pictures.is_dir() else ())
    if absent:
        raise CommandError(f"{pictures / min(absent)} does not exist, though {names[0]} lists it: {spec.source}")
    files = sorted(table)
    labels = (np.array([table[name] for name in files]) > 0).astype(np.int64)
    part = np.array([parts[name][0] for name in files])
    splits = {split: np.flatnonzero(part == k) for k, split in enumerate(SPLITS)}
    details = {"label_names": attributes, "factor_sizes": (2,) * len(attributes)}
    return Source(Files(pictures, files, spec.crop), labels, splits, details)


def read_list(path: Path, first: int, width: int, allowed: set[int]) -> dict[str, list[int]]:
    """File name -> values, from the lines after `first`."""
    table, texts = {}, set(map(str, allowed))
    for number, line in enumerate(read_lines(path)[first:], first + 1):
        name, *values = line.split() or [""]
        if len(values) != width or not texts.issuperset(values):
            raise CommandError(f"{path}, line {number}: a file name and {width} values of {sorted(allowed)} expected")
        table[name] = [int(value) for value in values]
    return table
