"""Tables of labels beside image files: labels.csv, the lists of CelebA, the features of FFHQ.

Every reader returns classes: int64 labels [N, K] or a table of them, or raises CommandError naming the file and line.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from utils import CommandError

FFHQ_ATTRIBUTES = ("Age_30_or_more", "Male", "Glasses")


def read_lines(path: Path) -> list[str]:
    """A text file of at least two lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not a readable text file: {error}") from None
    if len(lines) < 2:
        raise CommandError(f"{path} holds no table: {len(lines)} lines")
    return lines


def celeba_table(path: Path, first: int, width: int, allowed: set[int]) -> dict[str, list[int]]:
    """File name -> values, from the lines after `first`."""
    table, texts = {}, set(map(str, allowed))
    for number, line in enumerate(read_lines(path)[first:], first + 1):
        name, *values = line.split() or [""]
        if len(values) != width or not texts.issuperset(values):
            raise CommandError(f"{path}, line {number}: a file name and {width} values of {sorted(allowed)} expected")
        table[name] = [int(value) for value in values]
    return table


def read_labels(path: Path, names: list[str]) -> tuple[list[str], list[list[str]]]:
    """A table with a header, file names in its first column -> names of the other columns, a row for each of `names`.

    A file may be named by its path below the folder, by its name or by its name without the ending ('00017' or '17').
    Raises CommandError where files and rows do not match one to one.
    """
    try:
        header, *rows = csv.reader(read_lines(path))
    except csv.Error as error:
        raise CommandError(f"{path} is not a table of comma-separated values: {error}") from None
    keys = {}
    for place, name in enumerate(names):
        stem = Path(name).stem
        for key in {name, Path(name).name, stem, stem.lstrip("0") or "0"}:
            keys[key] = -1 if key in keys else place  # -1: two files of this name
    if len(header) < 2 or keys.get(header[0], -1) >= 0:
        raise CommandError(f"{path} needs a header: a column of file names, then names of the labels")
    table: list = [None] * len(names)
    for number, row in enumerate(rows, 2):
        cells = [cell.strip() for cell in row]
        place = keys.get(cells[0], -1) if cells else -1
        complete = len(cells) == len(header) and not any(cell.lower() in ("", "nan") for cell in cells)
        if place < 0 or table[place] is not None or not complete:
            raise CommandError(f"{path}, line {number}: not one of the images, once, with {len(header) - 1} labels")
        table[place] = cells[1:]
    if None in table:
        raise CommandError(f"{path} has no line for {names[table.index(None)]}")
    return [name.strip() for name in header[1:]], table


def to_classes(path: Path, columns: list[str], table: list[list[str]]) -> tuple[np.ndarray, dict]:
    """Every distinct cell of a column is a class; numbers in their order, words in theirs."""
    labels, values = [], []
    for name, cells in zip(columns, zip(*table, strict=True), strict=True):
        try:
            order = sorted(set(cells), key=float)
        except ValueError:
            order = sorted(set(cells))
        if len(order) == len(table) > 100:
            raise CommandError(f"{path}: no two values in column '{name}' agree; labels are classes, not measurements")
        number = {cell: k for k, cell in enumerate(order)}
        labels.append([number[cell] for cell in cells])
        values.append(order)
    sizes = tuple(map(len, values))
    kind = "class" if len(columns) == 1 else "attributes" if max(sizes) <= 2 else "factors"
    names = tuple(values[0]) if kind == "class" else tuple(columns)
    return np.array(labels, dtype=np.int64).T, {"labels": kind, "label_names": names, "factor_sizes": sizes}


def ffhq_table(path: Path, names: list[str]) -> np.ndarray:
    """Columns age (or age_group, as '30-39'), gender and glasses, among others or not."""
    columns, table = read_labels(path, names)
    columns = [name.lower().replace("age_group", "age") for name in columns]
    for wanted in ("age", "gender", "glasses"):
        if columns.count(wanted) != 1:
            raise CommandError(f"{path} has no one column '{wanted}' (it has: {', '.join(columns)})")
    places = [columns.index(wanted) for wanted in ("age", "gender", "glasses")]
    return np.array([_ffhq_attributes(path, *(row[place] for place in places)) for row in table], dtype=np.int64)


def ffhq_features(path: Path) -> list[int]:
    """The features of the face in a file of ffhq-features-dataset; [] where its makers found none."""
    try:
        faces = json.loads(path.read_text())
        if not faces:
            return []
        face = (faces[0] if isinstance(faces, list) else faces)["faceAttributes"]
        return _ffhq_attributes(path, *(str(face[name]) for name in ("age", "gender", "glasses")))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CommandError(f"{path} holds no face with age, gender and glasses: {type(error).__name__}") from None


def _ffhq_attributes(path: Path, age: str, gender: str, glasses: str) -> list[int]:
    try:
        years = float(age.split("-")[0])
    except ValueError:
        raise CommandError(f"{path}: an age is a number or a range, not '{age}'") from None
    male = {"male": 1, "m": 1, "1": 1, "female": 0, "f": 0, "0": 0, "-1": 0}.get(gender.lower())
    if male is None:
        raise CommandError(f"{path}: a gender is 'male' or 'female', not '{gender}'")
    return [int(years >= 30), male, int(glasses.lower() not in ("noglasses", "none", "no", "0", "-1"))]
