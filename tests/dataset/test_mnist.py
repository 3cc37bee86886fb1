"""IDX files, plain, packed, damaged or missing, and how a missing set is fetched."""

import contextlib
import gzip
import struct
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from made import pictures, refusal

from dataset import mnist, registry


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


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_idx_file_that_claims_more_than_it_holds_is_refused(tmp_path, ending):
    write_mnist(tmp_path / "mnist", ending)
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 28)
    path = tmp_path / "mnist" / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    assert "more than" in refusal("mnist", "train", root=tmp_path)


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
