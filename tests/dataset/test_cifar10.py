"""The batches of CIFAR-10: pickles, of which nothing may run."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from made import pictures, refusal

from dataset import registry


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
