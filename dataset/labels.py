"""labels.csv: a table of labels beside image files.

Readers return classes, int64 labels [N, K], or raise CommandError naming the file and line.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from utils import CommandError


def read_lines(path: Path) -> list[str]:
    """A text file of at least two lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not a readable text file: {error}") from None
    if len(lines) < 2:
        raise CommandError(f"{path} holds no table: {len(lines)} lines")
    return lines


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
