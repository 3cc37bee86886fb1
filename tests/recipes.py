"""Following a recipe of the README literally, in a copy of the suite.

A recipe says which files are new and which are edited; `follow` copies the suite, does what it says, and returns the
copy, in which `python` runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"tests", "docs", "data", "models", "imgs", "logs", "results"}


def block(name: str) -> str:
    """The Python lines that the README gives for a recipe, `**Name**: ...` and then a block. Few."""
    (lines,) = re.findall(rf"^\*\*{name}\*\*.*?^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert 1 <= lines.count("\n") <= 7
    return lines


def follow(folder: Path, new: dict[str, str], edits: dict[str, tuple[str, str]]) -> Path:
    """A copy of the suite below `folder` with a recipe's new files, and its edits: in a file, one text for another."""
    suite = folder / "suite"
    suite.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, suite)
    for package in {path.parent for path in ROOT.glob("[a-z]*/*.py")} - {ROOT / name for name in LEFT_OUT}:
        shutil.copytree(package, suite / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in new.items():
        assert not (suite / name).exists()
        (suite / name).write_text(text)
    for name, (before, after) in edits.items():
        text = (suite / name).read_text()
        assert text.count(before) == 1, f"{name} has '{before}' {text.count(before)} times"
        (suite / name).write_text(text.replace(before, after))
    return suite


def python(suite: Path, *words: str) -> str:
    """What `python WORDS` prints in the copy, where it must end well."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(suite)}
    done = subprocess.run([sys.executable, *words], cwd=suite, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
