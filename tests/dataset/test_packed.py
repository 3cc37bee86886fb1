"""dSprites and 3D Shapes: many images in one npz or h5 file."""

import zipfile

import numpy as np
import pytest
from made import pictures, refusal

from dataset import dsprites, registry
from utils import CommandError


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
