"""The recipes of the README, followed literally: each in a copy of what it touches."""

import sys
import types
from pathlib import Path

import numpy as np

from utils import read_json, write_npz

ROOT = Path(__file__).parents[1]

# Below a function of metrics/disentanglement.py, one place:
METRIC = '''
def spread(train_codes, train_factors, test_codes, test_factors):
    """How much codes vary, and by how much each follows each factor."""
    return {"spread": test_codes.std(), "following": np.abs(_correlation(test_codes, test_factors))}


METRICS["spread"] = Metric(spread, "spread of the codes")
'''


def load(monkeypatch, name, added=""):
    """The module `name`, with lines added at its end, in place of the one that was imported."""
    file = ROOT / (name.replace(".", "/") + ".py")
    module = types.ModuleType(name)
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, name, module)
    if "." in name:
        package, own = name.rsplit(".", 1)
        monkeypatch.setattr(sys.modules[package], own, module)
    exec(compile(file.read_text() + added, str(file), "exec"), module.__dict__)
    return module


def test_a_new_metric(in_tmp, monkeypatch, capsys):
    load(monkeypatch, "metrics.disentanglement", METRIC)
    program = load(monkeypatch, "eval_disentanglement")
    generator = np.random.default_rng(0)
    factors = generator.integers(0, 3, (40, 2))
    write_npz("seed0.npz", all_a=factors + generator.normal(size=(40, 2)), all_attr=factors)
    assert program.main(["--codes", "seed0.npz", "--metrics", "spread", "mig", "--output", "out"]) == 0
    assert "spread" in capsys.readouterr().out
    record = read_json("out/disentanglement.json")["files"][0]
    assert record["mean"]["spread"] > 0
    assert np.shape(record["matrices"]["spread"]["following"]) == (2, 2)
    assert Path("out/following-0.png").stat().st_size > 1000 and Path("out/information-0.png").is_file()
