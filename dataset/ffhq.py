"""ffhq: faces; 30 or older, male and with glasses as binary attributes, from a table or from files of features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dataset.base import Source, Spec
from dataset.files import Files, image_folder
from dataset.labels import read_labels
from utils import CommandError

ATTRIBUTES = ("Age_30_or_more", "Male", "Glasses")

SPECS = (
    Spec("ffhq", 64, labels="attributes", flip=True, width=64,
         source="the images of https://github.com/NVlabs/ffhq-dataset into ffhq/; labels, if any, from the json/ folder"
                " of https://github.com/DCGM/ffhq-features-dataset into ffhq/json/, or a table of one's own as"
                " ffhq/ffhq_labels.csv"),
)


def read(spec: Spec, root: Path) -> Source:
    """Faces without features leave the set."""
    folder = root / "ffhq"
    names = image_folder(spec, folder)
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


def read_table(path: Path, names: list[str]) -> np.ndarray:
    """Columns age (or age_group, as '30-39'), gender and glasses, among others or not."""
    columns, table = read_labels(path, names)
    columns = [name.lower().replace("age_group", "age") for name in columns]
    for wanted in ("age", "gender", "glasses"):
        if columns.count(wanted) != 1:
            raise CommandError(f"{path} has no one column '{wanted}' (it has: {', '.join(columns)})")
    places = [columns.index(wanted) for wanted in ("age", "gender", "glasses")]
    return np.array([_attributes(path, *(row[place] for place in places)) for row in table], dtype=np.int64)


def read_features(path: Path) -> list[int]:
    """The features of the face in a file of ffhq-features-dataset; [] where its makers found none."""
    try:
        faces = json.loads(path.read_text())
        if not faces:
            return []
        face = (faces[0] if isinstance(faces, list) else faces)["faceAttributes"]
        return _attributes(path, *(str(face[name]) for name in ("age", "gender", "glasses")))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CommandError(f"{path} holds no face with age, gender and glasses: {type(error).__name__}") from None


def _attributes(path: Path, age: str, gender: str, glasses: str) -> list[int]:
    try:
        years = float(age.split("-")[0])
    except ValueError:
        raise CommandError(f"{path}: an age is a number or a range, not '{age}'") from None
    male = {"male": 1, "m": 1, "1": 1, "female": 0, "f": 0, "0": 0, "-1": 0}.get(gender.lower())
    if male is None:
        raise CommandError(f"{path}: a gender is 'male' or 'female', not '{gender}'")
    return [int(years >= 30), male, int(glasses.lower() not in ("noglasses", "none", "no", "0", "-1"))]
