"""Files and errors: what every module needs, independent of diffusion. Importing it costs no torch.

* `CommandError`: a mistake of the caller's, shown as one line and exit status 2.
* `atomic`, `write_json`, `write_npz`, `save_checkpoint`: a file is whole or absent, never half written.
* `read_npz`, `load_checkpoint`: reading that can not run code.
* `locked`: one writer a folder. `OwnFolder`: a folder of pictures in which only our own are replaced or deleted.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import io
import json
import math
import os
import pickle
import platform
import re
import struct
import sys
import tempfile
import time
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

CHECKPOINT_FORMAT = 1

# What torch.load and np.load raise on broken files, by mutating some thousands of them.
UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, AssertionError, TypeError,
              AttributeError, OSError, struct.error, zipfile.BadZipFile, zlib.error,
              tokenize.TokenError, MemoryError)


class CommandError(Exception):
    """A mistake of the caller's. The message is one line that names the culprit and the cure."""


class RunError(Exception):
    """A run that went wrong by itself, such as a diverging loss. One line; exit status 1."""


def exit_status(prog: str, body: Callable[[list[str]], int | None], argv: list[str] | None) -> int:
    """Run a program's body on its words, sys.argv's where None, and turn what it raises into one line and a status.

    The body's own status, or 0; 2 for a CommandError and for a file or folder that the system refuses; 1 for a
    RunError and for want of memory; 130 for Ctrl-C. Anything else is a bug of ours, and keeps its traceback.
    """
    try:
        return body(sys.argv[1:] if argv is None else argv) or 0
    except CommandError as error:
        return _end(prog, 2, f"error: {error}")
    except RunError as error:
        return _end(prog, 1, str(error))
    except KeyboardInterrupt:
        return _end(prog, 130, "stopped by Ctrl-C")
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if not isinstance(error.filename, str | bytes):
            raise
        return _end(prog, 2, f"error: cannot use {os.fsdecode(error.filename)}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        return _end(prog, 1, f"out of memory: try smaller batches, fewer rows or smaller networks "
                             f"({first_line(error)})")


def _end(prog: str, status: int, text: str) -> int:
    print(f"{prog}: {' '.join(text.split())}", file=sys.stderr)
    return status


def is_memory(error: BaseException) -> bool:
    """Whether it says that there is no memory, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        "DefaultCPUAllocator" in str(error))


def first_line(error: Exception) -> str:
    """What an error says, as part of a line of ours; without torch's advice to switch its safety off."""
    if "weights_only" in str(error) or "Weights only load failed" in str(error):
        return "it holds more than tensors and plain values"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def did_you_mean(word: str, known) -> str:
    """'; did you mean ...?', where one of the known words is near, else ''."""
    begun = [one for one in known if len(word) > 3 and one.startswith(word)]
    near = begun or difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def to_its_error(value: float, error: float) -> tuple[str, str]:
    """A value to the second digit of its error, but to no more than six of its own, and the error: ('94.5', '1.6')."""
    if not (0 < error < math.inf and math.isfinite(value)):
        return f"{value:.4g}", f"{error:.2g}"
    place = math.floor(math.log10(float(f"{error:.1e}"))) - 1  # of the error's second digit
    size = max(abs(value), error)
    place = max(place, math.floor(math.log10(size)) - 5)
    value = round(value, -place) + 0.0  # no -0
    if not 1e-3 <= size < 1e6:
        digits = math.floor(math.log10(abs(value))) - place if value else 0
        return f"{value:.{digits}e}" if value else "0", f"{error:.2g}"
    digits = max(0, -place)
    return f"{value:.{digits}f}", f"{round(error, -place):.{digits}f}" if error >= 10.0**place else f"{error:.1g}"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table that a person and a Markdown reader can both read."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


# ---------------------------------------------------------------------------------------------------------------------
# Files that are whole or absent


@contextlib.contextmanager
def atomic(path: str | Path):
    """Yield a temporary path beside `path`; move it into place when the block ends well, delete it otherwise.

    Raises CommandError, naming the file, where it cannot be written (no room, no permission, a file for a folder).
    """
    path = Path(path)
    # The ending stays last, since writers choose the format by it; the process number keeps ranks apart.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_writable(folder: str | Path) -> None:
    """Raise CommandError, before anything expensive, where `folder` could not be made or written to."""
    place = Path(folder)
    while not os.path.lexists(place):
        place = place.parent
    try:
        longest = os.pathconf(place, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in Path(folder).parts):
            raise OSError(0, f"a name of more than {longest} bytes")
        with tempfile.TemporaryFile(dir=place):  # permission bits are not enough, for root or on /proc
            pass
    except OSError as error:
        shown = str(folder) if len(str(folder)) < 200 else f"{str(folder)[:200]}..."
        where = f"{shown}: {place}" if place != Path(folder) else shown
        raise CommandError(f"cannot write to {where}: {error.strerror or error}") from None


_PARTIAL = re.compile(r"\..+\.(\d+)\.partial(\.\w+)?")


def writable_file(path: str | Path) -> Path:
    """`path`, or CommandError, before anything expensive, where a file could not be written there."""
    path = Path(path)
    if path.is_dir():
        raise CommandError(f"cannot write {path}: it is a folder")
    check_writable(path.parent)
    return path


def remove_partial(folder: str | Path) -> None:
    """Delete the temporary files of `atomic` that killed processes left in a folder or below it."""
    for leftover in Path(folder).rglob(".*.partial*"):
        found = _PARTIAL.fullmatch(leftover.name)
        alive = found and int(found[1]) != os.getpid() and os.path.exists(f"/proc/{found[1]}")
        if found and not alive and leftover.is_file() and not leftover.is_symlink():
            leftover.unlink(missing_ok=True)


def progress_bar(*args, **options) -> tqdm:
    """A tqdm bar; where stderr is a file, which nobody watches, it is written every half minute only."""
    pace = {} if sys.stderr.isatty() else {"mininterval": 30, "maxinterval": 60}
    return tqdm(*args, **pace, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Whose files


@contextlib.contextmanager
def locked(*folders: str | Path, patience: float = 0.0, else_: str = "add --tag NAME for a run of its own"):
    """Be the only writer of some folders until the block ends, or this process does, however it ends.

    patience    seconds to wait for another process that is at work in one of them
    else_       what there is to do but wait
    Raises CommandError, saying who it is, where it still is.
    """
    with contextlib.ExitStack() as held:
        for folder in sorted({Path(folder).absolute() for folder in folders}):
            held.enter_context(_lock(folder, time.monotonic() + patience, else_))
        yield


@contextlib.contextmanager
def _lock(folder: Path, until: float, else_: str):
    """A file in the folder under flock: the system lets go of it when the process ends."""
    path = folder / ".lock"
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(number, 300, 0).decode(errors="replace").strip() or "unknown"
                os.close(number)
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                raise CommandError(f"{folder} is in use by another run ({holder}): wait for it, or {else_}") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(number), os.stat(path)):
                    break
            os.close(number)  # its last holder has just deleted it: take the next one
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError):  # a full disk: what is held is the lock, not its text
            os.ftruncate(number, 0)
            os.pwrite(number, f"process {os.getpid()} on {platform.node()}, since {since}\n".encode(), 0)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
    _locks.add(number)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _locks.discard(number)
        os.close(number)
        with contextlib.suppress(OSError):  # a run that was refused leaves no empty folders
            for place in made:
                place.rmdir()


_locks: set[int] = set()


def _forget_locks() -> None:
    """In a forked child, which would hold them beyond its parent's end."""
    for number in _locks:
        os.close(number)
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)


def refuse_other_inputs(result: Path, before: list, now: list[Path]) -> None:
    """Raise CommandError where a result file is of other inputs, files that are still there: it would be lost.

    before  the paths that stand in it
    """
    known = {path.resolve() for path in now}
    for path in before:
        if isinstance(path, str) and os.path.isfile(path) and Path(path).resolve() not in known:
            raise CommandError(f"{result} holds the numbers of {path}: name another folder for these "
                               f"(--result_folder), or move it away")


class OwnFolder:
    """A folder of pictures that a program may replace, as far as it made them itself.

    `.SHA256SUMS` in it lists what was made, a line a file as sha256sum writes it and `sha256sum -c` reads it. A file is
    ours where its name and its content stand there: what a person put there, changed or linked is never touched.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.list = Path(folder), Path(folder) / ".SHA256SUMS"

    def own(self, pattern: str = "*") -> set[Path]:
        """The files that match and are ours. Raises CommandError, naming it, for one that matches and is not."""
        if self.folder.is_symlink():
            raise CommandError(f"{self.folder} is a link: what it leads to is not deleted or replaced; remove the link")
        if not os.path.lexists(self.folder):
            return set()
        if not self.folder.is_dir():
            raise CommandError(f"{self.folder} is a file where a folder is needed: move it away")
        there = {path for path in self.folder.glob(pattern) if path.name not in (self.list.name, ".lock")}
        made = self._made() if there else {}
        for path in sorted(there):
            ours = path.name in made and path.is_file() and not path.is_symlink()
            if not ours or _sha256(path) not in made[path.name]:
                raise CommandError(f"{path} was not made by this program, or was changed since: move it away, it would "
                                   f"be replaced or deleted")
        return there

    def _made(self) -> dict[str, set[str]]:
        made: dict[str, set[str]] = {}
        if os.path.lexists(self.list):
            if not self.list.is_file():
                raise CommandError(f"{self.list} is not a file: remove it")
            for line in self.list.read_text(errors="replace").splitlines():
                digest, _, name = line.partition("  ")
                made.setdefault(name, set()).add(digest)
        return made

    def write(self, name: str, content: bytes) -> None:
        """A file, listed before it is there: one that is there is listed, whenever the process may be killed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.list, "ab") as file:
                file.write(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())
        except OSError as error:
            raise CommandError(f"cannot write {self.list}: {error.strerror or error}") from error
        with atomic(self.folder / name) as temporary:
            temporary.write_bytes(content)

    def forget(self, paths) -> None:
        """Delete files that `own` gave, and shorten the list to what is left."""
        for path in paths:
            path.unlink(missing_ok=True)
        left = {path.name for path in self.folder.glob("*")} if self.folder.is_dir() else set()
        made = {name: digests if len(digests) == 1 else digests & {_sha256(self.folder / name)}
                for name, digests in self._made().items() if name in left}
        if made:
            with atomic(self.list) as temporary:
                temporary.write_text("".join(f"{digest}  {name}\n" for name in made for digest in made[name]))
        else:
            self.list.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


def write_json(path: str | Path, record: dict) -> None:
    """Write a result a person and a script can both read."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, default=_jsonable) + "\n")


def _jsonable(value):
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into a result file")


def read_json(path: str | Path) -> dict:
    """The object of a JSON file. Raises CommandError for a missing or broken file, or another kind of value."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise CommandError(f"{path} is not a file")  # a FIFO would wait for ever
    try:
        record = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise CommandError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} is not a readable JSON file: {first_line(error)}") from None
    if not isinstance(record, dict):
        raise CommandError(f"{path} holds a {type(record).__name__}, not an object of named values")
    return record


def write_npz(path: str | Path, **arrays) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


INFLATED, RATIO = 1 << 30, 20  # an .npz may unpack to a gibibyte, and a larger one to so many times its own size


def read_npz(path: str | Path, *required: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, pickles refused.

    Raises CommandError for a missing, broken or incomplete file, and before it is unpacked for one that would take
    memory out of all proportion.
    """
    path = Path(path)
    if not path.is_file():
        raise CommandError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > max(INFLATED, RATIO * path.stat().st_size):
            raise zipfile.BadZipFile(f"it would unpack to {size:,} bytes")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise CommandError(f"{path} is not a readable .npz file: {first_line(error)}") from None
    for name in required:
        if name not in arrays:
            raise CommandError(f"{path} has no array '{name}' (it has: {', '.join(sorted(arrays)) or 'none'})")
    return arrays


def some_rows(count: int, most: int, seed: int) -> np.ndarray:
    """At most so many of `count` rows, drawn at random, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def codes_origin(arrays: dict[str, np.ndarray]) -> dict:
    """The hash of the checkpoint that a file of codes comes from, and its config; None where the file does not tell."""
    try:
        stored = json.loads(str(arrays["config"]))
    except (KeyError, ValueError, RecursionError):
        stored = None
    known = str(arrays["checkpoint_hash"]) if "checkpoint_hash" in arrays else None
    return {"checkpoint_hash": known, "config": stored if isinstance(stored, dict) else None}


def save_checkpoint(path: str | Path, record: dict, training: dict | None = None) -> None:
    """Write tensors and plain values; `record` gets the format version.

    training    what only going on needs, several times as large: packed, so that who uses the model need not open it
    """
    import torch

    if training is not None:
        packed = io.BytesIO()
        torch.save(training, packed)
        record = {**record, "training": torch.frombuffer(packed.getbuffer(), dtype=torch.uint8)}
    with atomic(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": CHECKPOINT_FORMAT, **record}, file)
        except RuntimeError as error:  # torch's word for a full disk, with the disk's own behind it
            behind = error.__context__
            raise behind if isinstance(behind, OSError) else OSError(None, first_line(error)) from None


def load_checkpoint(path: str | Path, whole: bool = True, verify: bool = True) -> dict:
    """Read what `save_checkpoint` wrote, into the processor's memory.

    whole   with what only going on needs, as further entries; else that stays packed, and on the disk
    verify  the checksums, for which the file is read to its end
    Raises CommandError where the file is absent, broken or of another kind.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise CommandError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_compressed(archive, path.stat().st_size)
            if verify and (damaged := archive.testzip()):  # torch itself does not look at the checksums
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = torch.load(path, map_location="cpu", weights_only=True, mmap=not whole)
            if whole and isinstance(record, dict) and "training" in record:
                packed = record.pop("training").numpy()
                with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                    _refuse_compressed(archive, packed.nbytes)
                record |= torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CommandError(f"checkpoint {path} cannot be read (truncated, or not ours): {first_line(error)}") from None
    made = record.get("format") if isinstance(record, dict) else None
    if not isinstance(made, int) or made != CHECKPOINT_FORMAT:
        raise CommandError(f"{path} is not a checkpoint of this program (format {CHECKPOINT_FORMAT})")
    return record


def _refuse_compressed(archive: zipfile.ZipFile, size: int) -> None:
    """torch stores and never compresses: a small file that asks for more memory than it has bytes is not ours."""
    entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or (
            sum(e.file_size for e in entries) > size):
        raise zipfile.BadZipFile("it is compressed, as no checkpoint is")


def _sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256: enough to tell two checkpoints apart."""
    return _sha256(path)[:16]


def hash_of(content) -> str:
    """`file_hash` of bytes, or of an array in memory."""
    return hashlib.sha256(content).hexdigest()[:16]


def versions() -> dict[str, str]:
    """What a reader needs to repeat a number."""
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
