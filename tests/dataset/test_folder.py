"""Folders of images: their splits, their labels, and test images that are never trained on."""

import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from made import by_number, numbered, pictures, refusal, save
from PIL import Image

from dataset import files, registry
from dataset.folder import split_folders
from utils import CommandError


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


# ---------------------------------------------------------------------------------------------------------------------
# Labels and images


def test_chairs_lie_in_nested_folders(tmp_path):
    folder = tmp_path / "chairs" / "rendered_chairs"
    for k in range(10):
        save(folder / f"id{k // 5}" / "renders" / f"{k}.png", pictures(1, 90, 90, 3)[0])
    assert [len(registry.load("chairs", split, root=tmp_path)) for split in registry.SPLITS] == [8, 1, 1]


def test_a_folder_is_any_images_with_words_as_classes(tmp_path):
    images = pictures(10, 16, 16, 3)
    for k in range(10):
        save(tmp_path / ("a", "b/c")[k % 2] / f"picture{k}.png", images[k])
    save(tmp_path / ".hidden" / "x.png", images[0])
    (tmp_path / "notes.txt").write_text("not an image")
    lines = [f"{('a', 'b/c')[k % 2]}/picture{k}.png,{('dog', 'cat', 'owl')[k % 3]}" for k in reversed(range(10))]
    (tmp_path / "labels.csv").write_text("file,animal\n" + "\n".join(lines) + "\n")
    train = registry.load("folder", "train", root=tmp_path, size=16)
    order = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]  # sorted by path
    which = [order[row] for row in train.rows]
    np.testing.assert_array_equal(train.images, images[which].transpose(0, 3, 1, 2))
    assert train.spec.labels == "class" and train.label_names == ("cat", "dog", "owl") and train.factor_sizes == (3,)
    assert train.labels[:, 0].tolist() == [(1, 0, 2)[k % 3] for k in which]


def test_folders_named_for_splits_are_the_splits(tmp_path):
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for k in range(count):
            save(tmp_path / split / f"{k}.png", pictures(1, 8, 8, 3)[0])
    assert [len(registry.load("folder", split, root=tmp_path)) for split in registry.SPLITS] == [3, 1, 2]


def test_several_columns_are_attributes_or_factors(tmp_path):
    for k in range(12):
        save(tmp_path / f"{k:03d}.png", pictures(1, 8, 8, 3)[0])
    binary = [f"{k},{k % 2},{('no', 'yes')[k // 6]}" for k in range(12)]
    (tmp_path / "labels.csv").write_text("id,odd,late\n" + "\n".join(binary))
    train = registry.load("folder", "train", root=tmp_path, size=8)
    assert (train.spec.labels, train.label_names, train.factor_sizes) == ("attributes", ("odd", "late"), (2, 2))
    assert train.labels.tolist() == [[row % 2, row // 6] for row in train.rows]
    (tmp_path / "labels.csv").write_text("id,odd,number\n" + "\n".join(f"{k},{k % 2},{k}" for k in range(12)))
    train = registry.load("folder", "train", root=tmp_path, size=8)
    assert (train.spec.labels, train.factor_sizes) == ("factors", (2, 12))
    assert train.labels[:, 1].tolist() == train.rows.tolist()  # as numbers: 2 before 10


@pytest.mark.parametrize("table, culprit", [
    ("file,kind\n0.png,a\n", "1.png"),
    ("file,kind\n0.png,a\n1.png,b\n2.png,c\n9.png,d\n", "line 5"),
    ("file,kind\n0.png,a\n1.png,\n2.png,c\n", "line 3"),
    ("file,kind\n0.png,a\n0.png,b\n2.png,c\n", "line 3"),
    ("0.png,a\n1.png,b\n2.png,c\n", "header"),
])
def test_labels_that_do_not_match_the_files_are_refused(tmp_path, table, culprit):
    for k in range(3):
        save(tmp_path / f"{k}.png", pictures(1, 8, 8, 3)[0])
    (tmp_path / "labels.csv").write_text(table)
    message = refusal("folder", "train", root=tmp_path)
    assert "labels.csv" in message and culprit in message


def test_an_empty_folder_and_an_empty_split_are_named(tmp_path):
    assert str(tmp_path) in refusal("folder", "train", root=tmp_path)
    save(tmp_path / "only.png", pictures(1, 8, 8, 3)[0])
    assert "train" in refusal("folder", "train", root=tmp_path)


def test_odd_images_grey_transparent_oblong_or_deep(tmp_path):
    grey = np.zeros((8, 12), dtype=np.uint8)
    grey[:, 2:10] = 200  # the central square
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(files.Files(tmp_path, ["grey.png"]).read(np.array([0]), 8), 200)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(files.read_image(tmp_path / "clear.png"), 255)
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "colours.png").write_bytes(deep_png())
    (tmp_path / "colours.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(24))
    (tmp_path / "few.ppm").write_bytes(b"P6 2 2 15\n" + bytes(12))
    for name in ("deep.png", "colours.png", "colours.ppm"):  # Pillow would keep the high bytes of colours, silently
        with pytest.raises(CommandError, match=f"{name} has more than 8 bits"):
            files.read_image(tmp_path / name)
    (tmp_path / "whole.bmp").write_bytes(bmp_of_16_bits_a_pixel())
    assert files.read_image(tmp_path / "few.ppm").shape == files.read_image(tmp_path / "whole.bmp").shape == (3, 2, 2)


def bmp_of_16_bits_a_pixel() -> bytes:
    """Two by two black pixels of 5, 6 and 5 bits."""
    about = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0) + struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    return b"BM" + struct.pack("<IHHI", 14 + len(about) + 8, 0, 0, 14 + len(about)) + about + bytes(8)


def deep_png() -> bytes:
    """Two by two pixels of 16 bits a colour."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(2 * (b"\0" + bytes(12))))
            + chunk(b"IEND", b""))
