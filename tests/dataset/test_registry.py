"""The registry, splits, batches, and every file format on small files of its real shape."""

import contextlib
import gzip
import json
import pickle
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from made import by_number, numbered, pictures, refusal, save
from PIL import Image

from dataset import base, dsprites, files, mnist, registry
from utils import CommandError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, *args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(mnist, "DEBIAN", Path("nowhere"))


# ---------------------------------------------------------------------------------------------------------------------
# Registry, splits, lattice


def test_flags_can_be_checked_without_torch():
    heavy = "('torch', 'torchvision', 'sklearn', 'h5py')"
    code = f"import dataset.registry, sys; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(registry.__file__).parents[1]).returncode == 0


@pytest.mark.parametrize("name, count", [("digits", 1797), ("shapes3d", 480_000)])
def test_named_splits_are_disjoint_complete_and_the_same_each_time(name, count):
    rows = [registry.load(name, split).rows for split in registry.SPLITS]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(count))
    np.testing.assert_array_equal(rows[2], registry.load(name, "test").rows)


def test_digits_lie_on_seventeen_levels():
    digits = registry.load("digits", "test")
    raw = digits.raw(range(len(digits)))
    assert len(digits) >= 500 and digits.shape == (1, 8, 8) and digits.levels == 17
    assert raw.dtype == torch.uint8 and raw.min() == 0 and raw.max() == 16
    x = digits.batch([5, 3])
    torch.testing.assert_close((x + 1) * 8, raw[[5, 3]].float(), rtol=0, atol=0)
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(raw[:, 0].numpy(), load_digits().images[digits.rows])
    np.testing.assert_array_equal(digits.labels[:, 0], load_digits().target[digits.rows])


def test_a_resized_set_is_rounded_to_uint8_once_and_keeps_the_range():
    digits = registry.load("digits", "val", size=16, channels=3, limit=40)
    assert digits.levels == 256 and digits.shape == (3, 16, 16) and len(digits) == 40
    x = digits.batch(range(40))
    steps = (x.double() + 1) * 127.5
    assert (steps - steps.round()).abs().max() < 1e-4
    assert x.max() > 0.9 and x.min() == -1 and torch.equal(x[:, 0], x[:, 2])


def test_resizing_is_antialiased():
    stripes = np.zeros((1, 1, 32, 32), dtype=np.uint8)
    stripes[..., ::2] = 255  # without a filter, every other column would give black or white
    small = base.resize(stripes, 8)
    assert abs(int(small[0, 0, 4, 4]) - 128) < 20


def test_grey_is_luma_and_an_image_does_not_depend_on_its_batch():
    one = registry.load("shapes3d", "val", size=16, channels=1, limit=6)
    colour = registry.load("shapes3d", "val", size=16, limit=6)
    luma = (colour.raw(range(6)).double() * torch.tensor([0.299, 0.587, 0.114])[:, None, None].double()).sum(1)
    assert (one.raw(range(6))[:, 0].double() - luma).abs().max() <= 0.5 + 1e-9
    assert torch.equal(colour.raw([4]), colour.raw(range(6))[4:5])


def test_only_the_rows_that_the_caller_names_are_mirrored():
    shapes = registry.load("shapes3d", "train", size=16, limit=4)
    x = shapes.batch(range(4))
    mirrored = shapes.batch(range(4), flip=torch.tensor([False, True, False, True]))
    assert torch.equal(mirrored[[0, 2]], x[[0, 2]])
    assert torch.equal(mirrored[[1, 3]], x[[1, 3]].flip(-1)) and not torch.equal(mirrored[1], x[1])


def test_flips_only_where_they_make_sense():
    flipped = {name for name, spec in registry.SPECS.items() if spec.flip}
    assert flipped.isdisjoint({"digits", "mnist", "dsprites", "shapes3d", "3dshapes", "folder"})
    assert "celeba" in flipped


@pytest.mark.parametrize("kwargs, culprit", [({"channels": 2}, "--input_channels 2"), ({"size": -1}, "--input_size")])
def test_sizes_that_make_no_picture_are_refused(kwargs, culprit):
    assert culprit in refusal("digits", "train", **kwargs)


def test_an_unknown_set_is_refused_by_name():
    assert "imagenet" in refusal("imagenet", "train")


# ---------------------------------------------------------------------------------------------------------------------
# Batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_batches_are_the_held_ones_in_the_callers_order(monkeypatch, num_workers):
    lists = [[3, 1], [0, 5, 5], [2]]
    held = registry.load("shapes3d", "test", size=8, limit=6)
    monkeypatch.setattr(registry, "HELD_COSTLY", 0)
    far = registry.load("shapes3d", "test", size=8, limit=6)
    assert held.images is not None and far.images is None

    state = torch.random.get_rng_state()
    near = list(registry.stream(held, iter(lists)))
    streamed = list(registry.stream(far, iter(lists), num_workers=num_workers))
    assert torch.equal(torch.random.get_rng_state(), state)
    for (indices, raw), (same, other), asked in zip(near, streamed, lists, strict=True):
        assert indices.tolist() == same.tolist() == asked
        assert torch.equal(raw, other) and torch.equal(raw, far.raw(asked))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named_in_one_line_even_by_a_worker(tmp_path, monkeypatch, num_workers):
    for name in ("train/0.png", "train/1.png", "val/2.png", "test/3.png"):
        save(tmp_path / name, pictures(1, 8, 8, 3)[0])
    broken = tmp_path / "train" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert str(broken) in refusal("folder", "train", root=tmp_path, size=8)
    monkeypatch.setattr(registry, "HELD_COSTLY", 0)
    train = registry.load("folder", "train", root=tmp_path, size=8)
    with pytest.raises(CommandError, match=r"^[^\n]*1\.png[^\n]*$"):
        list(registry.stream(train, [[0], [1, 0]], num_workers=num_workers))


# ---------------------------------------------------------------------------------------------------------------------
# mnist, fmnist


def write_idx(path, values: np.ndarray) -> None:
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, ending: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = pictures(25, 28, 28), np.arange(25, dtype=np.uint8) % 10
    for part, rows in (("train", slice(0, 20)), ("t10k", slice(20, 25))):
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images[rows])
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", labels[rows])
    return images, labels


@pytest.mark.parametrize("name, place", [
    ("mnist", "MNIST/raw"), ("mnist", "mnist"), ("fmnist", "FashionMNIST/raw"), ("fmnist", "fmnist")
])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_plain_or_gzipped(tmp_path, name, place, ending):
    images, labels = write_mnist(tmp_path / place, ending)
    parts = {split: registry.load(name, split, root=tmp_path, size=28) for split in registry.SPLITS}
    assert [len(part) for part in parts.values()] == [18, 2, 5]
    np.testing.assert_array_equal(np.concatenate([part.images[:, 0] for part in parts.values()]), images)
    np.testing.assert_array_equal(np.concatenate([part.labels[:, 0] for part in parts.values()]), labels)
    assert registry.load(name, "train", root=tmp_path).shape == (1, 32, 32)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_truncated_idx_file_is_named(tmp_path, ending):
    write_mnist(tmp_path / "mnist", ending)
    path = tmp_path / "mnist" / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in refusal("mnist", "train", root=tmp_path)


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path):
    write_mnist(tmp_path / "mnist", "")
    write_idx(tmp_path / "mnist" / "t10k-labels-idx1-ubyte", np.zeros(4, dtype=np.uint8))
    assert "t10k-images" in refusal("mnist", "test", root=tmp_path)
    write_idx(tmp_path / "mnist" / "t10k-labels-idx1-ubyte", np.zeros((5, 1), dtype=np.uint8))
    assert "t10k-labels" in refusal("mnist", "test", root=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist")
def test_the_real_fashion_mnist_of_debian(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "DEBIAN", Path("/usr/share/datasets/fashion-mnist"))
    test = registry.load("fmnist", "test", root=tmp_path)
    assert test.images.shape == (10_000, 1, 32, 32)
    assert (np.bincount(test.labels[:, 0]) == 1000).all()


# ---------------------------------------------------------------------------------------------------------------------
# Fetching


@pytest.mark.parametrize("name", ["mnist", "fmnist", "cifar10", "celeba", "ffhq", "chairs", "dsprites", "3dshapes"])
def test_a_missing_set_says_where_it_was_looked_for_and_writes_nothing(tmp_path, name):
    message = refusal(name, "train", root=tmp_path / "data")
    assert str(tmp_path / "data") in message and "http" in message
    assert not (tmp_path / "data").exists()


def reachable(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: contextlib.nullcontext())


@pytest.mark.slow
def test_what_can_be_downloaded_is_downloaded_and_then_read(tmp_path, monkeypatch):
    import torchvision

    reachable(monkeypatch)
    fetch = lambda folder, download: write_mnist(Path(folder) / "MNIST" / "raw", ".gz")  # noqa: E731
    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    assert len(registry.load("mnist", "test", root=tmp_path / "data")) == 5
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]


@pytest.mark.slow
def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    import torchvision

    def fetch(folder, download):
        write_mnist(Path(folder) / "MNIST" / "raw", "")
        raise RuntimeError("Error downloading train-images\nTried one mirror")

    reachable(monkeypatch)
    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    assert "Error downloading" in refusal("mnist", "train", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# cifar10


def write_cifar(folder) -> tuple[np.ndarray, list[int]]:
    images, labels = pictures(24, 3072), [k % 10 for k in range(24)]
    folder.mkdir(parents=True)
    for k, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        rows = slice(4 * k, 4 * k + 4)
        record = {b"batch_label": b"x", b"labels": labels[rows], b"data": images[rows], b"filenames": [b"a.png"] * 4}
        (folder / name).write_bytes(pickle.dumps(record, protocol=2))
    return images, labels


def test_cifar_batches(tmp_path):
    images, labels = write_cifar(tmp_path / "cifar-10-batches-py")
    parts = [registry.load("cifar10", split, root=tmp_path) for split in registry.SPLITS]
    assert [len(part) for part in parts] == [18, 2, 4] and parts[0].shape == (3, 32, 32)
    np.testing.assert_array_equal(np.concatenate([part.images.reshape(-1, 3072) for part in parts]), images)
    np.testing.assert_array_equal(np.concatenate([part.labels[:, 0] for part in parts]), labels)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("content", [pickle.dumps({b"data": Bomb(), b"labels": []}), b"\x80\x02}", b"", b"what"])
def test_a_pickle_that_would_run_code_is_refused_unrun(in_tmp, content):
    write_cifar(in_tmp / "cifar-10-batches-py")
    (in_tmp / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    assert "data_batch_3" in refusal("cifar10", "train", root=in_tmp)
    assert not (in_tmp / "ran").exists()


class Forged:
    """Rebuilt by numpy's own unpickling, an array of pointers, or of whatever flags, that a file chose."""

    def __init__(self, *made):
        self.made = made

    def __reduce__(self):
        return self.made


class ForgedState:
    """An array or a type whose state is not what numpy would write."""

    def __init__(self, made, state):
        self.made, self.state = made, state

    def __reduce__(self):
        return (*self.made, self.state)


EMPTY = np.empty(0, np.uint8).__reduce__()[:2]
BYTES = np.dtype("u1")
ODD_TYPE = ForgedState((np.dtype, ("u1", False, True)), (3, "|", None, None, None, -1, -1, 63))


@pytest.mark.parametrize("labels", [
    Forged(np.ndarray, ((1,), np.dtype("O"), b"AAAAAAAA")),
    ForgedState(EMPTY, (1, (1,), np.dtype("O"), False, [1])),
    ForgedState(EMPTY, (1, (1,), np.dtype("S1"), False, b"A")),
    ForgedState(EMPTY, (1, (1000,), BYTES, False, b"A")),
    ForgedState(EMPTY, (1, (-1, 1 << 62), BYTES, False, b"A")),
    ForgedState(EMPTY, (1, (1,), BYTES, True, b"A")),
    ForgedState(EMPTY, (1, (1,), 7, False, b"A")),
    ForgedState(EMPTY, None),
    ForgedState((np.dtype, ("V8", False, True)), (3, "<", None, None, None, 8, 1, 127)),
    np.array([11], np.uint8), [-1], [10], ["1"], [1.5], [[1]], [1 << 70], {0: 1}, None,
    np.array([[1]]), np.array([1.0]),
])
@pytest.mark.parametrize("protocol", [2, 4])
def test_forged_arrays_and_labels_out_of_range_are_one_line(in_tmp, labels, protocol):
    write_cifar(in_tmp / "cifar-10-batches-py")
    record = {b"data": np.zeros((1, 3072), np.uint8), b"labels": labels}
    (in_tmp / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(record, protocol=protocol))
    assert "data_batch_3" in refusal("cifar10", "train", root=in_tmp)


def test_a_type_is_known_by_its_name_alone(in_tmp):
    """Forged flags of an honest type change nothing."""
    images, _ = write_cifar(in_tmp / "cifar-10-batches-py")
    record = {b"data": ForgedState(EMPTY, (1, (4, 3072), ODD_TYPE, False, images[8:12].tobytes())),
              b"labels": np.array([8, 9, 0, 1])}
    (in_tmp / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(record, protocol=2))
    np.testing.assert_array_equal(registry.load("cifar10", "train", root=in_tmp).images.reshape(-1, 3072), images[:18])


# ---------------------------------------------------------------------------------------------------------------------
# celeba


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


# ---------------------------------------------------------------------------------------------------------------------
# dsprites, 3dshapes


def write_dsprites(folder, images, labels) -> None:
    folder.mkdir(exist_ok=True)
    metadata = np.array({"latents_names": ("color", "shape")}, dtype=object)  # a pickle, as in the published file
    np.savez(folder / dsprites.FILE, imgs=images, latents_classes=labels, metadata=metadata)


def test_dsprites_batches_are_images_and_the_pickle_in_it_stays_closed(tmp_path):
    """Faults: batches of three tensors crashed training."""
    sprites = (pictures(40, 64, 64) > 127).astype(np.uint8)
    labels = np.stack([np.arange(40) % size for size in (1, 3, 6, 40, 32, 32)], axis=1)
    write_dsprites(tmp_path / "dsprites", sprites, labels)
    full = registry.load("dsprites", "train", root=tmp_path, size=64)
    np.testing.assert_array_equal(full.images[:, 0], sprites[full.rows] * 255)
    np.testing.assert_array_equal(full.labels, labels[full.rows])
    assert full.batch([0, 1]).unique().tolist() == [-1, 1]
    assert registry.load("dsprites", "test", root=tmp_path).shape == (1, 32, 32)
    assert full.label_names[2] == "scale" and full.factor_sizes == (1, 3, 6, 40, 32, 32)


@pytest.mark.parametrize("images, labels", [
    (np.zeros((4, 8, 8), np.float32), np.zeros((4, 6), np.int64)),
    (np.zeros((4, 8, 8), np.uint8), np.zeros((3, 6), np.int64)),
    (np.zeros((4, 8, 8), np.uint8), np.full((4, 6), np.nan)),
    (np.zeros((4, 8, 9), np.uint8), np.zeros((4, 6), np.int64)),
])
def test_dsprites_of_another_shape_or_type_is_refused(tmp_path, images, labels):
    write_dsprites(tmp_path / "dsprites", images, labels)
    assert dsprites.FILE in refusal("dsprites", "train", root=tmp_path)


def test_a_broken_npz_is_named(tmp_path):
    (tmp_path / dsprites.FILE).write_bytes(b"PK\x03\x04 not much")
    assert dsprites.FILE in refusal("dsprites", "train", root=tmp_path)


def test_3dshapes_labels_become_classes(tmp_path):
    h5py = pytest.importorskip("h5py")
    images = pictures(20, 64, 64, 3)
    hues = np.arange(20) % 10 / 10
    scales = np.linspace(0.75, 1.25, 8)[np.arange(20) % 8]
    labels = np.stack([hues, hues, hues, scales, np.arange(20) % 4, np.linspace(-30, 30, 15)[np.arange(20) % 15]], 1)
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        file["images"], file["labels"] = images, labels
    parts = [registry.load("3dshapes", split, root=tmp_path) for split in registry.SPLITS]
    assert [len(part) for part in parts] == [16, 2, 2]
    train, rows = parts[0], parts[0].rows
    np.testing.assert_array_equal(train.raw(range(16)).numpy(), images[rows].transpose(0, 3, 1, 2))
    sizes = np.array([10, 10, 10, 8, 4, 15])
    np.testing.assert_array_equal(train.labels, rows[:, None] % sizes)
    assert train.factor_sizes == tuple(sizes)


def test_an_h5_file_that_is_none_or_lacks_labels_is_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "3dshapes.h5"
    path.write_bytes(b"nothing")
    assert str(path) in refusal("3dshapes", "train", root=tmp_path)
    with h5py.File(path, "w") as file:
        file["images"] = pictures(4, 8, 8, 3)
    assert "'labels'" in refusal("3dshapes", "train", root=tmp_path)


def test_pixels_outside_of_the_h5_file_are_not_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    images, labels = pictures(4, 8, 8, 3), np.zeros((4, 6))
    (tmp_path / "secret").write_bytes(images.tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = images

    def made(**arrays) -> str:
        with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
            file["labels"] = labels
            for name, make in arrays.items():
                if name in file:
                    del file[name]
                make(file, name)
        return refusal("3dshapes", "train", root=tmp_path)

    outside = made(images=lambda file, name: file.create_dataset(
        name, images.shape, "u1", external=[(str(tmp_path / "secret"), 0, images.size)]))
    layout = h5py.VirtualLayout(images.shape, "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", images.shape)
    virtual = made(images=lambda file, name: file.create_virtual_dataset(name, layout))
    assert "other files" in outside and "other files" in virtual
    for target in (h5py.ExternalLink("other.h5", "images"), h5py.SoftLink("/nowhere")):
        link = made(images=lambda file, name, target=target: file.__setitem__(name, target))
        assert "no array 'images' of its own" in link
    assert "group" in made(images=lambda file, name: file.create_group(name))
    assert "group" in made(images=lambda file, name: file.__setitem__(name, images),
                           labels=lambda file, name: file.create_group(name))
    assert "labels" in made(images=lambda file, name: file.create_dataset(name, (1 << 40, 8, 8, 3), "u1", chunks=True))


def test_a_damaged_chunk_of_an_h5_file_is_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "3dshapes.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=pictures(4, 8, 8, 3), chunks=(1, 8, 8, 3), compression="gzip")
        file["labels"] = np.zeros((4, 6))
        chunk = file["images"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    assert str(path) in " ".join(refusal_of_any_split("3dshapes", tmp_path))


def refusal_of_any_split(name, root) -> list[str]:
    messages = []
    for split in registry.SPLITS:
        try:
            registry.load(name, split, root=root, size=8)
        except CommandError as error:
            messages.append(str(error))
    return messages


@pytest.mark.parametrize("shape, culprit", [((1 << 40, 64, 64), "larger than"), ((9, 64, 64), "missing")])
def test_an_npz_that_claims_more_than_it_holds_is_refused_before_memory_is_asked_for(tmp_path, shape, culprit):
    with zipfile.ZipFile(tmp_path / dsprites.FILE, "w") as archive, archive.open("imgs.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(b"1234")
    assert culprit in refusal("dsprites", "train", root=tmp_path)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_idx_file_that_claims_more_than_it_holds_is_refused(tmp_path, ending):
    write_mnist(tmp_path / "mnist", ending)
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 28)
    path = tmp_path / "mnist" / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    assert "more than" in refusal("mnist", "train", root=tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Folders of images


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
    with pytest.raises(CommandError, match="deep.png"):
        files.read_image(tmp_path / "deep.png")
