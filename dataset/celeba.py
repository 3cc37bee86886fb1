"""celeba: aligned faces of 178x218, their central 148 pixels; 40 binary attributes; the official partition."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from dataset.base import SPLITS, Source, Spec
from dataset.files import Files, by_torchvision, find_or_fetch
from dataset.labels import read_lines
from utils import CommandError

SPECS = (
    Spec("celeba", 64, labels="attributes", flip=True, crop=148, width=64,
         source="img_align_celeba/, list_attr_celeba and list_eval_partition (.txt of"
                " https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, or Kaggle's .csv) into celeba/"),
)
LISTS = ("list_attr_celeba", "list_eval_partition")
# Where the lists and the pictures lie: beside each other; as in the authors' drive; doubled, as Kaggle's archive.
LIST_FOLDERS = ("", "Anno", "Eval")
PICTURE_FOLDERS = ("img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba")


def read(spec: Spec, root: Path) -> Source:
    folder = root / "celeba"
    paths = [find_list(folder, name) for name in LISTS]
    if None in paths:
        names = [f"{name}.txt" for name in LISTS]
        find_or_fetch(spec, root, [folder], names, "https://drive.google.com", by_torchvision("CelebA"))
        paths = [folder / name for name in names]
    attributes, table = read_list(paths[0], {-1, 1})
    _, parts = read_list(paths[1], {0, 1, 2})
    if table.keys() != parts.keys():
        odd = min(table.keys() ^ parts.keys())
        raise CommandError(f"{folder}: {paths[0].name} and {paths[1].name} do not list the same files: {odd} is in one")
    files = sorted(table)
    pictures = find_pictures(spec, folder, files, paths[0])
    labels = (np.array([table[name] for name in files]) > 0).astype(np.int64)
    part = np.array([parts[name][0] for name in files])
    splits = {split: np.flatnonzero(part == k) for k, split in enumerate(SPLITS)}
    details = {"label_names": attributes, "factor_sizes": (2,) * len(attributes)}
    return Source(Files(pictures, files, spec.crop), labels, splits, details)


def find_list(folder: Path, name: str) -> Path | None:
    """One of the two lists, as .txt or as Kaggle's .csv."""
    places = (folder / below / f"{name}{ending}" for below in LIST_FOLDERS for ending in (".txt", ".csv"))
    return next((path for path in places if path.is_file()), None)


def find_pictures(spec: Spec, folder: Path, files: list[str], listed: Path) -> Path:
    """The folder of the pictures. Raises CommandError where a listed one is not there, or still packed."""
    places = [folder / below for below in PICTURE_FOLDERS]
    counts = {place: set(os.listdir(place)) & set(files) if place.is_dir() else set() for place in places}
    best = max(places, key=lambda place: len(counts[place]))
    absent = set(files) - counts[best]
    if not absent:
        return best
    archive = folder / "img_align_celeba.zip"
    if not counts[best] and archive.is_file():
        raise CommandError(f"{archive} is still packed: unzip it in {folder}")
    name = min(absent)
    others = [path.name for path in best.glob(f"{Path(name).stem}.*")] if best.is_dir() else []
    raise CommandError(f"{best / name} does not exist, though {listed.name} lists it"
                       f"{f' ({others[0]} does)' if others else ''}: {spec.source}")


def read_list(path: Path, allowed: set[int]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Names of the columns, and file name -> values: the authors' list between blanks, or Kaggle's with commas.

    The authors' list of attributes starts with a count and the names, that of parts with its first file.
    """
    lines = read_lines(path)
    if "," in lines[0]:
        rows = list(csv.reader(lines))
        columns, first = tuple(cell.strip() for cell in rows[0][1:]), 1
    else:
        rows, first = [line.split() for line in lines], 2 if lines[0].strip().isdigit() else 0
        columns = tuple(rows[1]) if first else ("partition",)
    table: dict[str, list[int]] = {}
    texts = set(map(str, allowed))
    for number, row in enumerate(rows[first:], first + 1):
        name, *values = [cell.strip() for cell in row] or [""]
        where = f"{path}, line {number}"
        if len(values) != len(columns):
            raise CommandError(f"{where}: a file name and {len(columns)} values of {sorted(allowed)} expected, "
                               f"there are {len(values)}")
        if wrong := [column for column, value in zip(columns, values, strict=True) if value not in texts]:
            value = values[columns.index(wrong[0])]
            raise CommandError(f"{where}, column '{wrong[0]}': '{value}' is none of {sorted(allowed)}")
        if name in table:
            raise CommandError(f"{where}: {name} is listed twice")
        table[name] = [int(value) for value in values]
    return columns, table
