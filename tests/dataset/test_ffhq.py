"""Faces in folders, with labels in JSON files or a table."""

import json

import numpy as np
import pytest
from made import by_number, numbered, pictures, refusal, save

from dataset import registry


@pytest.fixture
def faces(tmp_path):
    for k in range(10):
        save(tmp_path / "ffhq" / "images" / f"{k:05d}.png", pictures(k + 1, 12, 12, 3)[k])
    return tmp_path


def both_parts(root) -> dict[int, list[int]]:
    """Labels by the row of the whole set."""
    parts = [registry.load("ffhq", split, root=root, size=12) for split in registry.SPLITS]
    return {row: labels.tolist() for part in parts for row, labels in zip(part.rows, part.labels, strict=True)}


def test_ffhq_labels_come_from_the_json_files_of_its_features(faces):
    """Faults: FFHQ labels: nobody can find the file."""
    (faces / "ffhq" / "json").mkdir()
    for k in range(10):
        face = {"gender": ("male", "female")[k % 2], "age": 20.0 + 2 * k, "glasses": ("NoGlasses", "Sunglasses")[k < 3]}
        record = [] if k == 4 else [{"faceId": "x", "faceAttributes": face}]
        (faces / "ffhq" / "json" / f"{k:05d}.json").write_text(json.dumps(record))
    known = [k for k in range(10) if k != 4]  # the fifth has no features, and leaves
    assert both_parts(faces) == {row: [k >= 5, k % 2 == 0, k < 3] for row, k in enumerate(known)}
    (faces / "ffhq" / "json" / "00003.json").write_text("[" * 100_000)
    assert "00003.json" in refusal("ffhq", "train", root=faces)
    (faces / "ffhq" / "json" / "00003.json").unlink()
    assert "00003.json" in refusal("ffhq", "train", root=faces)


def test_ffhq_labels_come_from_a_table(faces):
    ages = ["0-2", "15-19", "30-39", "70-120", "20-29"] * 2
    lines = [f"{k},{ages[k]},0.99,{('male', 'female')[k % 2]},{('None', 'Normal')[k // 5]}" for k in range(10)]
    table = faces / "ffhq" / "ffhq_labels.csv"
    table.write_text("image_number,age_group,age_group_confidence,gender,glasses\n" + "\n".join(lines) + "\n")
    assert both_parts(faces) == {k: [ages[k] in ("30-39", "70-120"), k % 2 == 0, k >= 5] for k in range(10)}
    table.write_text(table.read_text().replace("female", "?"))
    assert "line 3, column 'gender': '?'" in refusal("ffhq", "train", root=faces)


def test_a_table_of_faces_with_the_row_numbers_of_pandas_gives_each_face_its_own_labels(tmp_path):
    numbered(tmp_path / "ffhq" / "images", [f"{k:05d}.png" for k in range(30)])
    lines = [f"{i},{k},{'30-39' if k >= 15 else '20-29'},{('female', 'male')[k % 2]},None"
             for i, k in enumerate(np.random.default_rng(0).permutation(30))]
    (tmp_path / "ffhq" / "ffhq_labels.csv").write_text(",image_number,age_group,gender,glasses\n" + "\n".join(lines))
    labels = {number: label for number, (_, label) in by_number("ffhq", tmp_path).items()}
    assert labels == {k: [k >= 15, k % 2, 0] for k in range(30)}


@pytest.mark.parametrize("size, folder", [(4, "thumbnails8x8"), (8, "thumbnails8x8"), (12, "images16x16"),
                                          (64, "images16x16")])
def test_faces_in_two_resolutions_are_one_set_of_faces(tmp_path, capsys, size, folder):
    for k in range(10):
        for name, side in (("images16x16", 16), ("thumbnails8x8", 8)):
            save(tmp_path / "ffhq" / name / "00000" / f"{k:05d}.png", np.full((side, side, 3), k, np.uint8))
    parts = [registry.load("ffhq", split, root=tmp_path, size=size) for split in registry.SPLITS]
    assert [len(part) for part in parts] == [8, 1, 1]
    assert {name.split("/")[0] for name in parts[0].source.names} == {folder}
    assert folder in capsys.readouterr().out


def test_one_face_twice_in_one_folder_is_refused(faces):
    save(faces / "ffhq" / "images" / "more" / "00003.png", pictures(1, 12, 12, 3)[0])
    message = refusal("ffhq", "train", root=faces)
    assert "images/00003.png" in message and "images/more/00003.png" in message


def test_ffhq_without_labels_is_still_a_set_of_images(faces):
    train = registry.load("ffhq", "train", root=faces)
    assert train.labels is None and train.spec.labels == "none" and train.shape == (3, 64, 64)
