"""Files: whole or absent, and read in no way that could run code."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from utils import (
    CommandError,
    OwnFolder,
    RunError,
    atomic,
    check_writable,
    exit_status,
    file_hash,
    load_checkpoint,
    locked,
    progress_bar,
    read_json,
    read_npz,
    remove_partial,
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


def test_a_bomb_of_an_npz_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "codes.npz"
    write_npz(path, all_a=np.zeros((1 << 18, 4)))  # 8 MB of zeros in 8 kB
    assert read_npz(path)["all_a"].shape == (1 << 18, 4)  # small enough, whatever the ratio
    monkeypatch.setattr(utils, "INFLATED", 1 << 20)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(CommandError, match="codes.npz .*unpack to 8,388,"):
        read_npz(path)
    monkeypatch.undo()
    monkeypatch.setattr(utils, "INFLATED", 1 << 10)
    np.savez(path, all_a=np.zeros((1 << 10, 4)))  # as large as it says
    assert len(read_npz(path)["all_a"]) == 1 << 10


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


# ---------------------------------------------------------------------------------------------------------------------
# One writer a folder, and whose files are deleted

HOLDER = """
import sys, time
from utils import locked
with locked("a"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_hears_who_is_at_work_and_a_killed_one_holds_nothing(in_tmp):
    with locked("a", "b"):
        with pytest.raises(CommandError, match=rf"a is in use .*process {os.getpid()} on .* since 20"), locked("a"):
            pass
        with locked("c"):
            pass
    with locked("a"):
        pass
    assert not list(in_tmp.iterdir())  # nothing is left behind
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(CommandError, match=f"process {holder.pid} "), locked("a"):
        pass
    holder.kill()
    holder.wait()
    with locked("a"):
        pass


def test_a_forked_child_does_not_hold_its_parents_lock(in_tmp):
    with locked("a"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with locked("a"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def own(tmp_path):
    folder = OwnFolder(tmp_path / "imgs")
    for k in range(3):
        folder.write(f"{k}.png", bytes([k]) * 5)
    return folder


def test_what_a_program_made_is_its_own_and_a_person_can_check_the_list(own):
    assert {path.name for path in own.own("[!.]*")} == {"0.png", "1.png", "2.png"}
    assert subprocess.run(["sha256sum", "-c", "--quiet", ".SHA256SUMS"], cwd=own.folder).returncode == 0
    own.write("0.png", b"another")
    own.forget([own.folder / "1.png"])
    assert {path.name for path in own.own("[!.]*")} == {"0.png", "2.png"}
    assert subprocess.run(["sha256sum", "-c", "--quiet", ".SHA256SUMS"], cwd=own.folder).returncode == 0


@pytest.mark.parametrize("foreign", [
    lambda folder: (folder / "holiday.png").write_bytes(b"mine"),
    lambda folder: (folder / "1.png").write_bytes(b"edited"),
    lambda folder: (folder / "below").mkdir(),
    lambda folder: ((folder / "1.png").unlink(), (folder / "1.png").symlink_to(folder / "0.png")),
    lambda folder: (folder / "7.png").symlink_to("nowhere"),
    lambda folder: os.mkfifo(folder / "7.png"),
    lambda folder: (folder / ".SHA256SUMS").unlink(),
    lambda folder: (folder / ".SHA256SUMS").write_bytes(b"\xff\xfe garbled"),
])
def test_what_a_person_put_there_changed_or_linked_is_no_program_s_own(own, foreign):
    foreign(own.folder)
    before = sorted(path.name for path in own.folder.iterdir())
    with pytest.raises(CommandError, match="move it away"):
        own.own("[!.]*")
    assert sorted(path.name for path in own.folder.iterdir()) == before


def test_a_linked_folder_is_no_program_s_own(own, tmp_path):
    (tmp_path / "link").symlink_to(own.folder)
    (tmp_path / "dead").symlink_to("nowhere")
    for name in ("link", "dead"):
        with pytest.raises(CommandError, match="is a link"):
            OwnFolder(tmp_path / name).own()


def test_only_partial_files_of_processes_that_are_gone_are_swept(tmp_path):
    names = [".a.999999999.partial.png", "deep/.b.999999999.partial", ".notes.partial.txt", ".c.1.partial.png", "d.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    remove_partial(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == set(names[2:])


# ---------------------------------------------------------------------------------------------------------------------
# What a file may ask for


def test_a_compressed_checkpoint_is_refused_before_it_is_inflated(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"w": torch.zeros(2_000_000)})
    small = tmp_path / "small.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert small.stat().st_size < 100_000
    with pytest.raises(CommandError, match="compressed"):
        load_checkpoint(small)
    inside = torch.frombuffer(bytearray(small.read_bytes()), dtype=torch.uint8)
    save_checkpoint(path, {"step": 1, "training": inside})
    assert load_checkpoint(path, whole=False)["step"] == 1
    with pytest.raises(CommandError, match="compressed"):
        load_checkpoint(path)


@pytest.mark.parametrize("training", [5, [1], torch.zeros(4), torch.arange(9, dtype=torch.uint8)])
def test_a_state_of_training_that_is_none_is_one_line(tmp_path, training):
    save_checkpoint(tmp_path / "last.pth", {"step": 1, "training": training})
    with pytest.raises(CommandError, match="last.pth cannot be read"):
        load_checkpoint(tmp_path / "last.pth")


def test_what_only_training_needs_is_packed_and_read_where_it_is_asked_for(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"step": 3, "ema": {"w": torch.arange(3.0)}}, {"model": {"w": torch.arange(5.0)}, "sums": {}})
    used, whole = load_checkpoint(path, whole=False), load_checkpoint(path)
    assert used.keys() == {"format", "step", "ema", "training"} and torch.equal(used["ema"]["w"], torch.arange(3.0))
    assert whole.keys() == {"format", "step", "ema", "model", "sums"}
    assert torch.equal(whole["model"]["w"], torch.arange(5.0))


@pytest.mark.parametrize("value", [Path("x"), object])
def test_torch_s_advice_to_trust_a_file_reaches_nobody(tmp_path, value):
    path = tmp_path / "last.pth"
    torch.save({"format": 1, "value": value}, path)
    with pytest.raises(CommandError) as caught:
        load_checkpoint(path)
    assert "more than tensors" in str(caught.value) and "weights_only" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1]", "5", "null", "{", '{"a": ' * 100_000, "\udcff"])
def test_json_that_is_no_object_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CommandError, match="a.json"):
        read_json(path)


def test_a_fifo_is_no_json_file_and_a_long_name_no_folder(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CommandError, match="not a file"):
        read_json(tmp_path / "fifo")
    for name in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "below"):
        with pytest.raises(CommandError, match="more than 255 bytes"):
            check_writable(name)


@pytest.mark.parametrize("error, status, word", [
    (CommandError("--a is\nwrong"), 2, "error: --a is wrong"), (RunError("it diverged"), 1, "it diverged"),
    (KeyboardInterrupt(), 130, "Ctrl-C"), (MemoryError(), 1, "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory"),
    (PermissionError(13, "Permission denied", "/x/y"), 2, "/x/y: Permission denied"),
])
def test_what_a_program_raises_is_one_line_and_a_status(error, status, word, capsys):
    def body(argv):
        raise error

    assert exit_status("program", body, []) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and word in said


def test_a_bug_of_ours_keeps_its_traceback():
    def body(argv):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError):
        exit_status("program", body, [])


def test_a_reader_that_has_seen_enough_is_no_fault(tmp_path):
    program = "import sys, utils; sys.exit(utils.exit_status('p', lambda words: list(map(print, range(10**5))), []))"
    line = f'"{sys.executable}" -u -c "{program}" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", line], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "0\n", "")


@pytest.mark.parametrize("watched", [True, False])
def test_a_progress_bar_writes_little_into_a_file(monkeypatch, watched):
    class Stderr(io.StringIO):
        def isatty(self):
            return watched

    shown = Stderr()
    monkeypatch.setattr(sys, "stderr", shown)
    for _ in progress_bar(range(300), file=shown, miniters=1):
        time.sleep(0.001)
    assert (shown.getvalue().count("\r") > 3) == watched


def test_a_lock_is_waited_for(tmp_path):
    def hold():
        with locked(tmp_path):
            held.set()
            time.sleep(0.3)

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(CommandError, match="is in use"), locked(tmp_path):
        pass
    with locked(tmp_path, patience=10):
        assert True
    thread.join()
