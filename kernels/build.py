"""The C++ files in this folder as shared libraries: compiled once a machine, in seconds, kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from utils import CommandError, atomic

COMPILERS = ("g++", "c++", "clang++")
# The files are vectorised by hand; without "slp", which makes vectors of neighbouring lines and must take them apart.
FLAGS = ("-O3", "-march=native", "-fno-tree-slp-vectorize", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
         "-std=c++17", "-shared", "-fPIC")
T = TypeVar("T")


class NoCompiler(Exception):
    """What is missing, in one line."""


def load(source: Path, wrap: Callable[[ctypes.CDLL], T]) -> tuple[T, float]:
    """What `wrap` makes of the library, and the seconds that it took to build (0: it was there). Raises NoCompiler."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NoCompiler(f"no C++ compiler ({', '.join(COMPILERS)})")
    path, start = _cache() / f"{source.stem}-{_fingerprint(source, compiler)}.so", time.monotonic()
    built = not path.exists()
    try:
        if built:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                _build(compiler, source, temporary)
        return wrap(ctypes.CDLL(str(path))), (time.monotonic() - start) * built
    except (OSError, AttributeError, CommandError) as error:
        raise NoCompiler(f"{path.name} cannot be built or loaded ({error})") from None


def _build(compiler: str, source: Path, path: Path) -> None:
    """Compile a file, with OpenMP's threads where the compiler has them. Raises NoCompiler."""
    for threads in (["-fopenmp"], []):
        command = [compiler, *FLAGS, *threads, str(source), "-o", str(path)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode == 0:
            return
    raise NoCompiler(f"{compiler} does not compile {source.name} ({made.stderr.strip().splitlines()[-1:]})")


def _cache() -> Path:
    """The user's folder for what can be made again; a private temporary one where there is none to write in."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    near = next(folder for folder in (root, *root.parents) if folder.exists())
    if os.access(near, os.W_OK):
        return root / "infodiffusion"
    return Path(tempfile.mkdtemp(prefix="infodiffusion-"))


def _fingerprint(source: Path, compiler: str) -> str:
    """Of all that the machine code depends on: source and headers, flags, compiler and processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    headers = [path.read_text() for path in sorted(source.parent.glob("*.h"))]
    parts = [source.read_text(), *headers, *FLAGS, compiler, version, platform.machine(), processor]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
