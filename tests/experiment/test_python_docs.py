"""docs/python.md and the examples of the docstrings run as they stand; the notebook too."""

import doctest
import shutil
from pathlib import Path

import pytest
import tiny
import torch

import experiment.trained
from experiment import load

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def place(tmp_path_factory, full_networks):  # the notebook is another process
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("place")
        patch.chdir(folder)
        path = tiny.checkpoint("--dataset digits --z_dropout 0.1 --diffusion_steps 20")
        shutil.copytree(path.parent, "models/digits_2d_0.1mmd_0.1zdrop")
        model = load(path, "cpu")
        model.pictures(model.load_data("test").batch([7]))[0].save("seven.png")
        yield model


def run(tests, names):
    runner = doctest.DocTestRunner()
    for test in tests:
        test.globs = dict(names)
        runner.run(test)
    return runner.summarize()


@pytest.mark.slow
def test_the_docstrings_examples_hold(place):
    found = run([test for test in doctest.DocTestFinder().find(experiment.trained.Trained, "Trained")
                 if test.examples], {"model": place, "torch": torch})
    assert found.attempted >= 10 and not found.failed


@pytest.mark.slow
def test_the_page_runs(place):
    text = (DOCS / "python.md").read_text()
    found = run([doctest.DocTestParser().get_doctest(text, {}, "python.md", None, 0)], {})
    assert found.attempted >= 15 and not found.failed


@pytest.mark.slow
def test_the_notebook_runs(place, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "python.ipynb", as_version=4)
    setting = {"metadata": {"path": str(Path.cwd())}}
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import sys; sys.path.insert(0, {str(DOCS.parent)!r})"))
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=setting).execute()
