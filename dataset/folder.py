"""folder: any images, nested or not, with a table of labels if there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataset.base import SPLITS, Source, Spec
from dataset.files import Files, image_folder
from dataset.labels import read_labels, to_classes

SPECS = (
    Spec("folder", 64, flip=True,
         source="--data_dir is itself the folder of images, nested or not, with a labels.csv if there is one"),
)


def read(spec: Spec, root: Path) -> Source:
    """Folders named train, val and test, where all three are there, are the splits."""
    names = image_folder(spec, root)
    top = np.array([name.split("/")[0] if "/" in name else "" for name in names])
    splits = {split: np.flatnonzero(top == split) for split in SPLITS}
    if not all(map(len, splits.values())):
        splits = None
    table = root / "labels.csv"
    labels, details = to_classes(table, *read_labels(table, names)) if table.is_file() else (None, {})
    return Source(Files(root, names), labels, splits, details)
