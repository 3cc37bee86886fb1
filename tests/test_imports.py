"""Imports run one way, by folder: a file may import only from the rows below its own, or from its own package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    {"scripts"},
    {"run", "gen_fid_stats", "calc_fid", "train_classifier", "eval_disentanglement"},
    {"modes"},
    {"training"},
    {"experiment"},
    {"models"},
    {"metrics", "pretrained", "regularisers", "sampling", "information"},
    {"commandline"},
    {"dataset", "config", "plots", "diffusion"},
    {"modules", "rng", "distributed", "utils", "kernels"},
]
# Within a row: who may import whom.
BESIDE = {("calc_fid", "gen_fid_stats"), ("information", "diffusion"), ("config", "dataset"), ("dataset", "diffusion"),
          ("modules", "kernels"), ("kernels", "utils")}
ROW = {name: height for height, row in enumerate(ROWS) for name in row}
PACKAGES = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
FILES = sorted([*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))])


def place(path):
    """What a file belongs to: its package, or itself."""
    return path.stem if path.parent == ROOT else path.parent.name


def imported(path):
    """Names of the modules and packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def upward(own, names):
    """The names that are neither below the row of `own` nor its own package."""
    ours = {name for name in names if name in ROW and name != own}
    return {name for name in ours if ROW[name] <= ROW[own] and (own, name) not in BESIDE}


def test_every_file_has_its_row_and_the_top_level_is_small():
    assert {place(path) for path in FILES} == set(ROW)
    assert len(list(ROOT.glob("*.py"))) <= 18


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards(path):
    assert not upward(place(path), imported(path))


def test_an_import_that_goes_up_is_seen(tmp_path):
    (tmp_path / "modules.py").write_text("def f():\n    from models import build_model\n")
    assert upward("modules", imported(tmp_path / "modules.py")) == {"models"}
