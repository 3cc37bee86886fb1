"""Imports run one way: a file may import only from the rows below its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIERS = [
    {"run", "calc_fid", "eval_disentanglement", "train_classifier"},
    {"gen_fid_stats"},
    {"evaluation", "representation", "likelihood", "mutual_information"},
    {"measure"},
    {"training", "told_tau"},
    {"assembly"},
    {"information", "variational"},
    {"density"},
    {"sampling"},
    {"models"},
    {"pretrained"},
    {"iddpm"},
    {"fid"},
    {"extractors", "disentanglement", "classification"},
    {"diffusion", "priors"},
    {"modules"},
    {"data"},
    {"image_files", "shapes3d", "points"},
    {"label_files"},
    {"curves"},
    {"plots"},
    {"config"},
    {"distributed", "noise", "utils"},
]
TIER = {name: height for height, tier in enumerate(TIERS) for name in tier}
FILES = {path.stem: path for path in ROOT.glob("*.py")}


def imported(path):
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_every_file_has_its_row():
    assert set(FILES) == set(TIER)


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_run_downwards(name):
    ours = {other for other in imported(FILES[name]) if other in FILES or (ROOT / other).is_dir()}
    upward = {other for other in ours if TIER.get(other, -1) <= TIER[name]}
    assert not upward


def test_an_arrow_that_goes_up_is_seen(tmp_path):
    path = tmp_path / "noise.py"
    path.write_text("def f():\n    from models import build_model\n")
    assert list(imported(path)) == ["models"] and TIER["models"] <= TIER["noise"]
