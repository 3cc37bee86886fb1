"""Files: whole or absent, and read in no way that could run code."""

import errno
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import (
    CommandError,
    atomic,
    check_writable,
    file_hash,
    load_checkpoint,
    read_json,
    read_npz,
    save_checkpoint,
    write_json,
    write_npz,
)

ROOT = Path(__file__).parents[1]


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"step": 3, "model": {"w": torch.arange(2000.0)}})
    return path


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_the_old_checkpoint_whole(checkpoint, monkeypatch):
    def full(record, file):
        file.write(b"PK half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 470")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CommandError, match="last.pth"):
        save_checkpoint(checkpoint, {"step": 4})
    assert load_checkpoint(checkpoint)["step"] == 3
    assert len(list(checkpoint.parent.iterdir())) == 1


def test_no_room_is_refused_with_the_files_name(tmp_path):
    with pytest.raises(CommandError, match="a.txt.*No space left"), atomic(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "imgs").write_text("")
    with pytest.raises(CommandError, match="imgs"):
        check_writable(tmp_path / "imgs" / "digits")
    with pytest.raises(CommandError, match="imgs"):
        write_json(tmp_path / "imgs" / "digits" / "a.json", {})
    check_writable(tmp_path / "elsewhere" / "digits")
    assert not (tmp_path / "elsewhere").exists()


def test_a_dead_link_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "models").symlink_to(tmp_path / "gone")
    with pytest.raises(CommandError, match="models"):
        check_writable(tmp_path / "models" / "digits")


def test_results_come_back_as_they_went(tmp_path):
    write_json(tmp_path / "r.json", {"a": np.float32(0.5), "b": np.arange(2), "c": tmp_path})
    assert read_json(tmp_path / "r.json") == {"a": 0.5, "b": [0, 1], "c": str(tmp_path)}
    write_npz(tmp_path / "r.npz", z=np.eye(2))
    assert np.array_equal(read_npz(tmp_path / "r.npz", "z")["z"], np.eye(2))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_broken_json_is_named(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(CommandError, match="r.json"):
        read_json(tmp_path / "r.json")
    with pytest.raises(CommandError, match="gone.json"):
        read_json(tmp_path / "gone.json")


def test_broken_archives_are_named(tmp_path):
    path = tmp_path / "latents.npz"
    write_npz(path, all_a=np.random.default_rng(0).normal(size=(40, 4)))
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:200] + bytes(200) + whole[400:]):
        path.write_bytes(content)
        with pytest.raises(CommandError, match="latents.npz"):
            read_npz(path)
    path.write_bytes(whole)
    with pytest.raises(CommandError, match="all_attr.*all_a"):
        read_npz(path, "all_a", "all_attr")
    with pytest.raises(CommandError, match="gone.npz"):
        read_npz(tmp_path / "gone.npz")


def test_pickles_are_never_run(tmp_path):
    bait = tmp_path / "bait"
    np.savez(tmp_path / "a.npz", x=np.array([Bomb(bait)], dtype=object))
    torch.save({"format": 1, "x": Bomb(bait)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Bomb(bait)))
    with pytest.raises(CommandError, match="a.npz"):
        read_npz(tmp_path / "a.npz")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(CommandError, match=name):
            load_checkpoint(tmp_path / name)
    assert not bait.exists()


def test_broken_checkpoints_are_named(checkpoint):
    whole = checkpoint.read_bytes()
    rng = np.random.default_rng(0)
    cases = [b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1]]
    for _ in range(300):  # wherever the damage is, either the file still reads or the error is ours
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] = rng.integers(256)
        cases.append(bytes(damaged))
    refused = 0
    for content in cases:
        checkpoint.write_bytes(content)
        try:
            load_checkpoint(checkpoint)
        except CommandError as error:
            assert "last.pth" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused >= 5


def test_checkpoints_of_another_format_or_kind_are_refused(tmp_path):
    torch.save({"format": 99}, tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "b.pth")
    for name in ("a.pth", "b.pth", "gone.pth"):
        with pytest.raises(CommandError, match=name):
            load_checkpoint(tmp_path / name)


def test_the_hash_tells_files_apart(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_hash(tmp_path / name) for name in "abc")
    assert a == b != c


def test_flags_and_files_are_checked_without_torch():
    program = "import sys, utils, config, dataset.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_result_is_readable_by_anyone(tmp_path):
    write_json(tmp_path / "r.json", {"nll_nats": 1.5})
    assert json.loads((tmp_path / "r.json").read_text())["nll_nats"] == 1.5
