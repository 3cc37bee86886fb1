"""labels.csv: a table of labels beside image files, as people's tools write it.

Accepted is what can be meant in one way only: commas, semicolons or tabs, blank lines, './x', backslashes, paths of
another machine, a column of row numbers. Anything else is refused with the line, the column and the value at fault.
Readers return classes, int64 labels [N, K].
"""

from __future__ import annotations

import codecs
import csv
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.files import ENDINGS
from utils import CommandError

MISSING = {"", "nan", "na", "n/a", "<na>", "#n/a", "nat", "null"}
UNNAMED = re.compile(r"(unnamed: ?\d+)?", re.IGNORECASE)  # what pandas calls its index, in a file and read from one
NAME_HEADERS = {"file", "file_name", "filename", "files", "image", "image_id", "image_name", "image_number", "images",
                "img", "id", "name", "path", "filepath", "file_path", "image_path"}
MAX_BYTES = 2**28  # of a table


def read_lines(path: Path) -> list[str]:
    """A text file of at least two lines, in UTF-8, or in UTF-16 that says so."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CommandError(f"{path} is larger than {MAX_BYTES:,} bytes: it is no table of labels")
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = re.split("\r\n|\r|\n", content.decode("utf-16" if wide else "utf-8-sig").rstrip("\r\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not a readable text file: {error}") from None
    if len(lines) < 2:
        raise CommandError(f"{path} holds no table: {len(lines)} lines")
    return lines


class Table(NamedTuple):
    """Labels of images as they are written: names of the columns, and a row and its line number for each image."""

    columns: list[str]
    rows: list[list[str]]
    lines: list[int]


def read_labels(path: Path, names: list[str]) -> Table:
    """A table with a header and a column of file names -> the other columns, for each of `names`.

    A file may be named by its path below the folder, by its name or by its name without the ending ('00017' or '17').
    Raises CommandError where files and rows do not match one to one, or a cell is empty.
    """
    header, rows = _parse(path)
    files = Names(names)
    if named := [cell for cell in header if (match := files.find(cell)) and match.by_name]:
        raise CommandError(f"{path}, line 1: '{named[0]}' is an image; a header is needed, such as 'file,label'")
    key = _name_column(path, header, rows, files)
    kept = [place for place, cell in enumerate(header) if place != key and not _is_idle(cell, place, rows)]
    if not kept:
        raise CommandError(f"{path}, line 1: no column of labels beside '{header[key]}'")
    _check_header(path, header, kept)
    table: dict[int, tuple[int, list[str]]] = {}
    for (number, cells), place in zip(rows, _places(path, header[key], key, rows, files), strict=True):
        where = f"{path}, line {number}, column"
        if place in table:
            line = table[place][0]
            raise CommandError(f"{where} '{header[key]}': '{cells[key]}' is {names[place]}, as in line {line}")
        for column in kept:
            if cells[column].lower() in MISSING:
                value = f"'{cells[column]}'" if cells[column] else "an empty cell"
                raise CommandError(f"{where} '{header[column]}': {value} is no label, and every image needs one")
        table[place] = number, [cells[column] for column in kept]
    if absent := [name for place, name in enumerate(names) if place not in table]:
        raise CommandError(f"{path} has no line for {absent[0]}: {len(table)} lines for {len(names)} images")
    lines, cells = zip(*(table[place] for place in range(len(names))), strict=True)
    return Table([header[column] for column in kept], list(cells), list(lines))


# ---------------------------------------------------------------------------------------------------------------------
# The table


def _parse(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and (line number, stripped cells) of every line that is not blank; all of the header's width."""
    lines = read_lines(path)
    tables, errors = [], []
    for mark in ",;\t":
        reader = csv.reader((line + "\n" for line in lines), delimiter=mark, strict=True)
        try:
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
        except csv.Error as error:
            errors.append(f"{path}, line {reader.line_num}: {error}")
            continue
        rows = [row for row in rows if any(row[1])]
        if rows and len(rows[0][1]) > 1:
            tables.append([(number, _without_tail(cells, len(rows[0][1]))) for number, cells in rows])
    if not tables:
        one = f"{path}, line 1: one column; file names and labels are needed, with commas between"
        raise CommandError(errors[0] if len(errors) == 3 or "," in lines[0] and errors else one)
    even = [rows for rows in tables if all(len(cells) == len(rows[0][1]) for _, cells in rows)]
    (_, header), *rows = (even or tables)[0]
    if not rows:
        raise CommandError(f"{path} has a header and no lines below it")
    for number, cells in rows:
        if len(cells) != len(header):
            raise CommandError(f"{path}, line {number}: {len(cells)} cells (the last is '{cells[-1]}'), "
                               f"the header has {len(header)}")
    return header, rows


def _without_tail(cells: list[str], width: int) -> list[str]:
    """A line without the empty cells past the header's width."""
    while len(cells) > width and not cells[-1]:
        cells = cells[:-1]
    return cells


def _check_header(path: Path, header: list[str], kept: list[int]) -> None:
    for column in kept:
        if not header[column]:
            raise CommandError(f"{path}, line 1: column {column + 1} has no name")
        if header.count(header[column]) > 1:
            raise CommandError(f"{path}, line 1: two columns are named '{header[column]}'")


def _is_idle(name: str, column: int, rows: list[tuple[int, list[str]]]) -> bool:
    """Whether a column is empty, or the index that pandas writes: numbers without a name, or 'index' and 0, 1, 2 ..."""
    cells = [row[column] for _, row in rows]
    if name.lower() == "index":
        return cells == [str(k) for k in range(len(rows))]
    return UNNAMED.fullmatch(name) is not None and all(cell.isdigit() or not cell for cell in cells)


def _name_column(path: Path, header: list[str], rows, files: Names) -> int:
    """The column of file names: the one whose cells are images, each once; by name before by number.

    Where none fits, the nearest: its cells are looked at one by one, and the first wrong one is named.
    """
    columns = range(len(header))
    found = [[files.find(cells[column]) for _, cells in rows] for column in columns]
    images = [{match.images[0] for match in matches if match} for matches in found]
    by_name = [sum(match is not None and match.by_name for match in matches) for matches in found]
    like_files = [sum(Path(cells[column]).suffix.lower() in ENDINGS for _, cells in rows) for column in columns]
    counted = [column for column in columns if not _is_idle(header[column], column, rows)]
    if any(by_name) or any(like_files):
        fits = [column for column in columns if by_name[column] == len(rows) == len(images[column])]
        nearest = max(columns, key=lambda column: (by_name[column], like_files[column]))
    else:
        each_once = [column for column in columns if all(found[column]) and len(images[column]) == len(rows)]
        fits = [column for column in each_once if column in counted or header[column].lower() == "index"]
        fits = [column for column in fits if column in counted] or fits
        nearest = max(counted or columns, key=lambda column: len(images[column]))
        if each_once and not fits:
            raise CommandError(f"{path}, line 1: a column of row numbers, and none of file names")
    if len(fits) > 1:
        named = [column for column in fits if header[column].lower() in NAME_HEADERS]
        if len(named) != 1:
            first, second = (header[column] for column in fits[:2])
            raise CommandError(f"{path}, line 1: columns '{first}' and '{second}' both name the images: keep one")
        fits = named
    return fits[0] if fits else nearest


def _places(path: Path, name: str, key: int, rows, files: Names) -> list[int]:
    """The image of every row. What is cut off in front of the names ('/home/me/') must be the same everywhere."""
    places, fronts = [], {}
    for number, cells in rows:
        where = f"{path}, line {number}, column '{name}': '{cells[key]}'"
        match = files.find(cells[key])
        if match is None:
            raise CommandError(f"{where} is not one of the {len(files.names)} images{files.guess(cells[key])}")
        if len(match.images) > 1:
            first, second = (files.names[place] for place in match.images[:2])
            raise CommandError(f"{where} may be {first} or {second}: give the path")
        fronts.setdefault(match.front, number)
        if len(fronts) > 1:
            line = next(line for front, line in fronts.items() if front != match.front)
            raise CommandError(f"{where} lies in another folder than line {line}'s: give paths below {path.parent}")
        places.append(match.images[0])
    return places


class Match(NamedTuple):
    """The images that a cell names, what is in front of their names in it, and whether by name or without an ending."""

    images: list[int]
    front: str
    by_name: bool


class Names:
    """Image files by whatever names them."""

    def __init__(self, names: list[str]):
        self.names = names
        self.paths = {name: [place] for place, name in enumerate(names)}
        self.by_name: dict[str, list[int]] = defaultdict(list)  # with the ending
        self.by_number: dict[str, list[int]] = defaultdict(list)  # without
        for place, name in enumerate(names):
            path = Path(name)
            for key in {_plain(name), _plain(path.name)}:
                self.by_name[key].append(place)
            stem = _plain(path.stem)
            for key in {_plain(path.with_suffix("").as_posix()), stem, stem.lstrip("0") or "0"}:
                self.by_number[key].append(place)

    def find(self, cell: str) -> Match | None:
        """The images named by the longest tail of a cell that names any.

        An exact path is one image; else the case of letters and how accents are encoded do not count.
        """
        if cell in self.paths:
            return Match(self.paths[cell], "", True)
        parts = _plain(cell).split("/")
        for start in range(len(parts)):
            tail, front = "/".join(parts[start:]), "/".join(parts[:start])
            for table in (self.by_name, self.by_number):
                if tail in table:
                    return Match(table[tail], front, table is self.by_name)
        return None

    def guess(self, cell: str) -> str:
        """', but b.png is' for b.jpg."""
        found = self.by_number.get(_plain(Path(cell.replace("\\", "/")).stem))
        return f", but {self.names[found[0]]} is" if found else ""


def _plain(name: str) -> str:
    """A name for comparing: slashes, no './' in front, composed accents, lower case."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def to_classes(path: Path, table: Table) -> tuple[np.ndarray, dict]:
    """Every distinct value of a column is a class; numbers in their order (0 and 0.0 are one), words in theirs."""
    labels, values = [], []
    for name, cells in zip(table.columns, zip(*table.rows, strict=True), strict=True):
        spelled = _spellings(cells)
        if len(set(spelled)) == len(cells) > 100:
            raise CommandError(f"{path}, column '{name}': no two of {len(cells)} values agree ('{cells[0]}', "
                               f"'{cells[1]}' ...); labels are classes, not measurements")
        order = sorted(set(spelled), key=Decimal if _are_numbers(cells) else None)
        number = {cell: k for k, cell in enumerate(order)}
        labels.append([number[cell] for cell in spelled])
        values.append(tuple(order))
    sizes = tuple(map(len, values))
    kind = "class" if len(values) == 1 else "attributes" if max(sizes) <= 2 else "factors"
    names = values[0] if kind == "class" else tuple(table.columns)
    details = {"labels": kind, "label_names": names, "factor_sizes": sizes, "value_names": tuple(values)}
    return np.array(labels, dtype=np.int64).T, details


def _are_numbers(cells: Iterable[str]) -> bool:
    try:
        return all(math.isfinite(float(cell)) for cell in cells)
    except ValueError:
        return False


def _spellings(cells: tuple[str, ...]) -> list[str]:
    """One spelling a value: of numbers that are equal the shortest, '1' for '1.0'."""
    if not _are_numbers(cells):
        return list(cells)
    shortest: dict[Decimal, str] = {}
    for cell in cells:
        value = Decimal(cell)
        shortest[value] = min(shortest.get(value, cell), cell, key=lambda text: (len(text), text))
    return [shortest[Decimal(cell)] for cell in cells]


def folder_classes(names: list[str], skip: frozenset[str] = frozenset()) -> tuple[np.ndarray, dict] | None:
    """Classes from folders, 'cat/1.png' and 'dog/1.png', where every image lies in one: labels [N, 1] and details.

    skip  folders that are no classes (those of splits). What lies in front of all images counts for nothing. None
    where images lie beside the folders, or every one has a folder of its own.
    """
    paths = [[part for part in name.split("/")[:-1] if part not in skip] for name in names]
    while all(paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    classes = {path[0] for path in paths if path}
    if not all(paths) or len(classes) == len(names):
        return None
    order = sorted(classes)
    number = {name: k for k, name in enumerate(order)}
    labels = np.array([[number[path[0]]] for path in paths], dtype=np.int64)
    return labels, {"labels": "class", "label_names": tuple(order), "factor_sizes": (len(order),),
                    "value_names": (tuple(order),)}
