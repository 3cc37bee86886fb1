"""Files and errors: what every module needs, independent of diffusion. Importing it costs no torch.

* `CommandError`: a mistake of the caller's, shown as one line and exit status 2.
* `atomic`, `write_json`, `write_npz`, `save_checkpoint`: a file is whole or absent, never half written.
* `read_npz`, `load_checkpoint`: reading that can not run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import platform
import struct
import sys
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

CHECKPOINT_FORMAT = 1

# What torch.load and np.load raise on broken files, by mutating some thousands of them.
UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, AssertionError, TypeError,
              AttributeError, OSError, struct.error, zipfile.BadZipFile, zlib.error,
              tokenize.TokenError, MemoryError)


class CommandError(Exception):
    """A mistake of the caller's. The message is one line that names the culprit and the cure."""


def exit_status(prog: str, body: Callable[[list[str]], None], argv: list[str] | None) -> int:
    """Run a program's body on its words, sys.argv's where None: 0, or 2 after one line for a CommandError."""
    try:
        body(sys.argv[1:] if argv is None else argv)
    except CommandError as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def first_line(error: Exception) -> str:
    """What an error says, as part of a line of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table that a person and a Markdown reader can both read."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


class RunError(Exception):
    """A run that went wrong by itself, such as a diverging loss. One line; exit status 1."""


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
        with tempfile.TemporaryFile(dir=place):  # permission bits are not enough, for root or on /proc
            pass
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {place}: {error.strerror or error}") from None


def writable_file(path: str | Path) -> Path:
    """`path`, or CommandError, before anything expensive, where a file could not be written there."""
    path = Path(path)
    if path.is_dir():
        raise CommandError(f"cannot write {path}: it is a folder")
    check_writable(path.parent)
    return path


def sweep(folder: str | Path) -> None:
    """Delete the temporary files that killed processes left in a folder. For its only writer."""
    for leftover in Path(folder).glob(".*.partial*"):
        leftover.unlink(missing_ok=True)


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
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise CommandError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} is not a readable JSON file: {error}") from None


def write_npz(path: str | Path, **arrays) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_npz(path: str | Path, *required: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, pickles refused. Raises CommandError for a missing, broken or incomplete file."""
    path = Path(path)
    if not path.is_file():
        raise CommandError(f"{path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise CommandError(f"{path} is not a readable .npz file: {first_line(error)}") from None
    for name in required:
        if name not in arrays:
            raise CommandError(f"{path} has no array '{name}' (it has: {', '.join(sorted(arrays)) or 'none'})")
    return arrays


def save_checkpoint(path: str | Path, record: dict) -> None:
    """Write tensors and plain values; `record` gets the format version."""
    import torch

    with atomic(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": CHECKPOINT_FORMAT, **record}, file)
        except RuntimeError as error:  # torch's word for a full disk, with the disk's own behind it
            behind = error.__context__
            raise behind if isinstance(behind, OSError) else OSError(None, first_line(error)) from None


def load_checkpoint(path: str | Path, device = "cpu") -> dict:
    """Read what `save_checkpoint` wrote. Raises CommandError where the file is absent, broken or of another kind."""
    import torch

    path = Path(path)
    if not path.is_file():
        raise CommandError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        record = torch.load(path, map_location=device, weights_only=True)
    except UNREADABLE as error:
        raise CommandError(f"checkpoint {path} cannot be read (truncated, or not ours): {first_line(error)}") from None
    if not isinstance(record, dict) or record.get("format") != CHECKPOINT_FORMAT:
        raise CommandError(f"{path} is not a checkpoint of this program (format {CHECKPOINT_FORMAT})")
    return record


def file_hash(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256: enough to tell two checkpoints apart."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """What a reader needs to repeat a number."""
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
