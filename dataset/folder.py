"""folder: any images, nested or not, with a table of labels or folders of classes, and folders of splits, if any."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from dataset.base import SPLITS, Source, Spec, cut, note
from dataset.files import Files, image_folder
from dataset.labels import folder_classes, read_labels, to_classes
from utils import CommandError

SPECS = (
    Spec("folder", 64,
         source="--data_dir is itself the folder of images, nested or not, with a labels.csv if there is one"),
)
WORDS = {"train": "train", "training": "train", "trainset": "train", "val": "val", "valid": "val", "validation": "val",
         "dev": "val", "test": "test", "testing": "test", "testset": "test"}


def read(spec: Spec, root: Path) -> Source:
    """Labels from labels.csv, else from folders of classes. Images beside the folders of splits leave the set."""
    names = image_folder(spec, root)
    folders = split_folders(names)
    if folders:
        inside = [name for name in names if _split_of(name, folders)]
        if len(inside) < len(names):
            outside = next(name for name in names if not _split_of(name, folders))
            note(f"{root}: {len(names) - len(inside)} images outside of {_listed(folders)} are left out: {outside} ...")
        names = inside
    tables = [path for path in sorted(root.iterdir()) if path.name.lower() == "labels.csv" and path.is_file()]
    if len(tables) > 1:
        raise CommandError(f"{root} has two tables of labels, {tables[0].name} and {tables[1].name}: keep one")
    if tables:
        labels, details = to_classes(tables[0], read_labels(tables[0], names))
    elif classes := folder_classes(names, frozenset(folders)):
        labels, details = classes
        note(f"{root}: the folders are the classes: {', '.join(details['label_names'][:5])}"
             f"{' ...' if len(details['label_names']) > 5 else ''}")
    else:
        labels, details = None, {}
        beside, inside = [], []
        for name in names:
            (beside if all(part in folders for part in name.split("/")[:-1]) else inside).append(name)
        if beside and inside and folder_classes(inside, frozenset(folders)):
            note(f"{root}: no labels, since {beside[0]} lies in no folder of a class (of {len(beside)} in all)")
    return Source(Files(root, names), labels, folder_splits(root, names, folders), details)


def split_folders(names: list[str]) -> dict[str, str]:
    """The folders that are splits, by name: {'Train': 'train', 'valid': 'val'}; {} without train and one other.

    Names may share one more word, as in train_images and test_images, and hold a number, as in train2017.
    """
    groups: dict[str, dict[str, str]] = {}
    for part in {part for name in names for part in name.split("/")[:-1]}:
        words = re.findall("[a-z]+", part.lower())
        split = [WORDS[word] for word in words if word in WORDS]
        if len(split) == 1:
            rest = " ".join(word for word in words if word not in WORDS)
            groups.setdefault(rest, {})[part] = split[0]
    whole = [group for group in groups.values() if "train" in group.values() and len(set(group.values())) > 1]
    counts = Counter(part for name in names for part in name.split("/")[:-1])
    return max(whole, key=lambda group: sum(counts[part] for part in group), default={})


def _split_of(name: str, folders: dict[str, str]) -> str | None:
    return next((folders[part] for part in name.split("/")[:-1] if part in folders), None)


def _listed(folders: dict[str, str]) -> str:
    return " and ".join(f"{folder}/" for folder in sorted(folders, key=lambda folder: SPLITS.index(folders[folder])))


def folder_splits(root: Path, names: list[str], folders: dict[str, str]) -> dict[str, np.ndarray] | None:
    """Rows of the splits as the folders say, in random order, the same each time: paths are often sorted by class.

    A split that is not there is a tenth of train.
    """
    if not folders:
        return None
    of = np.array([_split_of(name, folders) for name in names])
    order = np.random.RandomState(0).permutation(len(of))
    splits = {split: order[of[order] == split] for split in SPLITS}
    absent = [split for split in ("val", "test") if not len(splits[split])]
    for split in absent:
        parts = cut(len(splits["train"]), 0, 0.1)
        splits[split], splits["train"] = (splits["train"][parts[name]] for name in ("test", "train"))
    if absent:
        note(f"{root}: {_listed(folders)} are the splits; {' and '.join(absent)}, not there, "
             f"{'is' if len(absent) == 1 else 'are'} cut from train ({len(splits['train']):,} images stay)")
    return splits
