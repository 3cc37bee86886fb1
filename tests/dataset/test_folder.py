"""Folders of splits: what is there is honoured, what is not is cut from train, and test images are never trained on."""

from collections import Counter

import pytest
from made import by_number, numbered

from dataset import registry
from dataset.folder import split_folders


def splits_of(tmp_path, folders: dict[str, int]) -> dict[str, Counter]:
    """Split -> how many images of which folder, for folders of so many images."""
    names = [f"{folder}/{k}.png" for folder, count in folders.items() for k in range(count)]
    numbered(tmp_path, names)
    found: dict[str, Counter] = {"train": Counter(), "val": Counter(), "test": Counter()}
    for number, (split, _) in by_number("folder", tmp_path).items():
        found[split][names[number].rsplit("/", 1)[0]] += 1
    return found


@pytest.mark.parametrize("train, val, test", [
    ("train", "val", "test"), ("train", "valid", "test"), ("Train", "Val", "Test"), ("images/train", "images/val",
    "images/test"), ("training", "validation", "testing"), ("train_images", "dev_images", "test_images"),
    ("train2017", "val2017", "test2017"), ("train/images", "valid/images", "test/images"),
    ("training_set/training_set", "validation_set", "test_set/test_set"),
])
def test_folders_named_for_splits_are_the_splits_however_they_are_named(tmp_path, train, val, test):
    assert splits_of(tmp_path, {train: 5, val: 3, test: 4}) == {"train": {train: 5}, "val": {val: 3}, "test": {test: 4}}


def test_a_validation_or_test_split_that_is_not_there_is_cut_from_train_and_said(tmp_path, capsys):
    assert splits_of(tmp_path / "a", {"train": 20, "test": 7}) == {"train": {"train": 18}, "val": {"train": 2},
                                                                   "test": {"test": 7}}
    said = capsys.readouterr().out
    assert "val" in said and "18" in said and said.count("note:") == 1
    assert splits_of(tmp_path / "b", {"train": 20, "val": 7}) == {"train": {"train": 18}, "val": {"val": 7},
                                                                  "test": {"train": 2}}


def test_the_first_rows_of_a_split_are_of_all_its_classes(tmp_path):
    """Fault: rows in the order of their paths, so that the first thousand were of the first class alone."""
    numbered(tmp_path, [f"{split}/{kind}/{k}.png" for split in ("train", "test") for kind in "ab" for k in range(20)])
    for split in registry.SPLITS:  # val is cut from train
        labels = registry.load("folder", split, root=tmp_path).labels[:, 0]
        assert 0 < labels[: len(labels) // 2].sum() < len(labels) // 2 or len(labels) < 5


def test_images_beside_the_folders_of_splits_are_left_out_and_said(tmp_path, capsys):
    found = splits_of(tmp_path, {"train": 5, "val": 2, "test": 3, "unlabelled": 4})
    assert found == {"train": {"train": 5}, "val": {"val": 2}, "test": {"test": 3}}
    assert "4 images outside of train/ and val/ and test/" in capsys.readouterr().out


def test_one_image_beside_the_folders_of_classes_is_named_since_it_takes_the_labels(tmp_path, capsys):
    numbered(tmp_path, [f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(6)] + ["stray.png"])
    assert registry.load("folder", "train", root=tmp_path).labels is None
    assert "no labels, since stray.png" in capsys.readouterr().out


def test_classes_below_or_above_splits_are_classes(tmp_path):
    numbered(tmp_path / "a", ["train/cat/0.png", "train/dog/1.png", "test/dog/2.png", "train/cat/3.png"])
    assert {number: label for number, (_, label) in by_number("folder", tmp_path / "a").items()} == {
        0: [0], 1: [1], 2: [1], 3: [0]}
    numbered(tmp_path / "b", ["cat/train/0.png", "dog/train/1.png", "dog/val/2.png", "cat/test/3.png"])
    assert by_number("folder", tmp_path / "b") == {0: ("train", [0]), 1: ("train", [1]), 2: ("val", [1]),
                                                   3: ("test", [0])}


@pytest.mark.parametrize("names", [
    ["bus/1.png", "train/1.png", "plane/1.png"],  # trains
    ["train/1.png", "train/2.png"], ["val/1.png", "test/1.png"], ["1.png"],
    ["train_station/1.png", "test_tube/1.png"],
])
def test_other_folders_are_no_splits(names):
    assert split_folders(names) == {}
