"""ffhq: faces; 30 or older, male and with glasses as binary attributes, from a table or from files of features."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from dataset.base import Source, Spec, note
from dataset.files import Files, image_folder, read_image
from dataset.labels import read_labels
from utils import CommandError

ATTRIBUTES = ("Age_30_or_more", "Male", "Glasses")
FEATURES = ("age", "gender", "glasses")
GENDERS = {"male": 1, "female": 0, "m": 1, "f": 0, "1": 1, "0": 0, "-1": 0}
GLASSES = dict.fromkeys(("noglasses", "none", "no", "false", "0", "-1"), 0) | dict.fromkeys(
    ("readingglasses", "sunglasses", "swimminggoggles", "normal", "dark", "yes", "true", "1"), 1)

SPECS = (
    Spec("ffhq", 64, labels="attributes", flip=True, width=64,
         source="the images of https://github.com/NVlabs/ffhq-dataset into ffhq/; labels, if any, from the json/ folder"
                " of https://github.com/DCGM/ffhq-features-dataset into ffhq/json/, or a table of one's own as"
                " ffhq/ffhq_labels.csv"),
)


def read(spec: Spec, root: Path) -> Source:
    """Faces without features leave the set."""
    folder = root / "ffhq"
    names = one_resolution(folder, image_folder(spec, folder), spec.size)
    details = {"label_names": ATTRIBUTES, "factor_sizes": (2, 2, 2)}
    if (folder / "ffhq_labels.csv").is_file():
        labels = read_table(folder / "ffhq_labels.csv", names)
    elif (folder / "json").is_dir():
        features = {name: read_features(folder / "json" / f"{Path(name).stem}.json") for name in names}
        names = [name for name in names if features[name]]
        labels = np.array([features[name] for name in names], dtype=np.int64).reshape(-1, 3)
    else:
        return Source(Files(folder, names), details={"labels": "none"})
    return Source(Files(folder, names), labels, details=details)


def one_resolution(folder: Path, names: list[str], size: int) -> list[str]:
    """The faces of one top folder, where several hold the same ones (images1024x1024/, thumbnails128x128/).

    The smallest pictures of at least `size` pixels a side, else the largest. Raises CommandError where one folder
    holds two pictures of one number.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split("/")[0] if "/" in name else "", []).append(name)
    stems = {group: [Path(name).stem for name in members] for group, members in groups.items()}
    if sum(map(len, stems.values())) == len(set().union(*stems.values())):
        return names  # every number once
    sides = {group: min(read_image(folder / members[0]).shape[1:]) for group, members in groups.items()}
    chosen = min(groups, key=lambda group: (sides[group] < size, abs(sides[group] - size), group))
    twice = [stem for stem, count in Counter(stems[chosen]).items() if count > 1]
    if twice:
        first, second = [name for name in groups[chosen] if Path(name).stem == twice[0]][:2]
        raise CommandError(f"--dataset ffhq: {folder} holds one face twice, {first} and {second}: keep one of them")
    note(f"{folder}: the same faces in {', '.join(f'{group}/' for group in sorted(groups))}; "
         f"the {len(groups[chosen]):,} of {chosen}/ are used")
    return groups[chosen]


def read_table(path: Path, names: list[str]) -> np.ndarray:
    """Columns age (or age_group, as '30-39'), gender and glasses, among others or not."""
    table = read_labels(path, names)
    columns = [name.lower() for name in table.columns]
    columns = ["age" if name == "age_group" and "age" not in columns else name for name in columns]
    for wanted in FEATURES:
        if columns.count(wanted) != 1:
            raise CommandError(f"{path} has no one column '{wanted}' (it has: {', '.join(columns)})")
    places = [columns.index(wanted) for wanted in FEATURES]
    values = [_attributes(f"{path}, line {line}", *(row[place] for place in places))
              for row, line in zip(table.rows, table.lines, strict=True)]
    return np.array(values, dtype=np.int64)


def read_features(path: Path) -> list[int]:
    """The features of the face in a file of ffhq-features-dataset; [] where its makers found none."""
    try:
        if not path.is_file():
            raise FileNotFoundError
        faces = json.loads(path.read_text())
        if not faces:
            return []
        face = (faces[0] if isinstance(faces, list) else faces)["faceAttributes"]
        return _attributes(str(path), *(str(face[name]) for name in FEATURES))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CommandError(f"{path} holds no face with age, gender and glasses: {type(error).__name__}") from None


def _attributes(where: str, age: str, gender: str, glasses: str) -> list[int]:
    """30 or older, male, with glasses: 0 or 1 each. Raises CommandError naming the place, the column and the value."""
    years = re.fullmatch(r"(\d+(\.\d*)?)( *[-+].*)?", age)  # 34, 34.0, 30-39, 70+
    if years is None:
        raise CommandError(f"{where}, column 'age': a number or a range is needed, not '{age}'")
    words = []
    for column, value, known in (("gender", gender, GENDERS), ("glasses", glasses, GLASSES)):
        if value.lower() not in known:
            raise CommandError(f"{where}, column '{column}': '{value}' is none of {', '.join(known)}")
        words.append(known[value.lower()])
    return [int(float(years[1]) >= 30), *words]
