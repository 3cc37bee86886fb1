"""CelebA's partition, crop and attributes, however the files lie."""

import numpy as np
import pytest
from made import refusal, save

from dataset import registry


@pytest.fixture
def celeba(tmp_path):
    folder = tmp_path / "celeba"
    picture = np.full((218, 178, 3), 255, dtype=np.uint8)
    picture[35:183, 15:163] = 10  # the central 148 pixels
    names = [f"{k:06d}.jpg" for k in range(1, 7)]
    for name in names:
        save(folder / "img_align_celeba" / name, picture)
    rows = [f"{name}  {'1' if k % 2 else '-1'} -1  1" for k, name in enumerate(names)]
    header = "6\nSmiling Male Young \n"
    (folder / "list_attr_celeba.txt").write_text(header + "\n".join(rows) + "\n")
    parts = [f"{name} {part}" for name, part in zip(names, (0, 0, 0, 1, 2, 2), strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return tmp_path


def test_celeba_has_its_partition_its_crop_and_binary_attributes(celeba):
    parts = [registry.load("celeba", split, root=celeba) for split in registry.SPLITS]
    assert [part.rows.tolist() for part in parts] == [[0, 1, 2], [3], [4, 5]]
    train = parts[0]
    assert train.label_names == ("Smiling", "Male", "Young") and train.factor_sizes == (2, 2, 2)
    assert train.labels.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 1]]
    assert train.images.shape == (3, 3, 64, 64)
    assert train.images[..., 2:-2, 2:-2].max() < 30  # nothing of the white frame, which the crop leaves outside


@pytest.mark.parametrize("places", [
    {"img_align_celeba": "img_align_celeba/img_align_celeba"},
    {"img_align_celeba": "Img/img_align_celeba", "list_attr_celeba.txt": "Anno/list_attr_celeba.txt",
     "list_eval_partition.txt": "Eval/list_eval_partition.txt"},
    {"list_attr_celeba.txt": "list_attr_celeba.csv", "list_eval_partition.txt": "list_eval_partition.csv"},
    {"list_attr_celeba.txt": "list_attr_celeba.txt", "list_eval_partition.txt": "list_eval_partition.csv"},
])
@pytest.mark.parametrize("commas", [False, True])
def test_celeba_is_read_as_kaggle_and_the_authors_lay_it_out(celeba, places, commas):
    folder = celeba / "celeba"
    expected = [registry.load("celeba", split, root=celeba, size=4) for split in registry.SPLITS]
    if commas:
        for name, head in (("list_attr_celeba", None), ("list_eval_partition", "partition")):
            lines = (folder / f"{name}.txt").read_text().splitlines()[0 if head else 1 :]
            lines = ([head] if head else []) + lines
            table = [",".join([*(["image_id"] if not k else []), *line.split()]) for k, line in enumerate(lines)]
            (folder / f"{name}.txt").write_text("\n".join(table) + "\n")
    for name, place in places.items():
        (folder / name).rename(folder / "moved")
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "moved").rename(folder / place)
    for split, known in zip(registry.SPLITS, expected, strict=True):
        part = registry.load("celeba", split, root=celeba, size=4)
        assert part.labels.tolist() == known.labels.tolist() and part.label_names == known.label_names
        np.testing.assert_array_equal(part.images, known.images)


def test_celeba_that_is_packed_or_of_another_ending_is_named(celeba):
    pictures = celeba / "celeba" / "img_align_celeba"
    (pictures / "000002.jpg").rename(pictures / "000002.png")
    assert "000002.png does" in refusal("celeba", "train", root=celeba)
    pictures.rename(celeba / "elsewhere")
    (celeba / "celeba" / "img_align_celeba.zip").write_bytes(b"PK")
    assert "unzip" in refusal("celeba", "train", root=celeba)


def test_celeba_files_that_do_not_fit_are_named(celeba):
    (celeba / "celeba" / "img_align_celeba" / "000004.jpg").unlink()
    assert "000004.jpg" in refusal("celeba", "train", root=celeba)
    path = celeba / "celeba" / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("-1", "0"))
    assert "list_attr_celeba.txt, line 3, column 'Smiling': '0'" in refusal("celeba", "train", root=celeba)
