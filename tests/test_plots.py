"""Figures: what somebody's text may do to them."""

import json

import numpy as np
import pytest

import plots

WORDS = ["$", "$$", "$x_$", r"\$a$", r"a\b$c$", "$\\frac{$", "{}%s", "äöü", ""]


@pytest.mark.slow
def test_text_is_never_parsed_as_mathematics(tmp_path):
    path, count, word = tmp_path / "a.png", len(WORDS), "".join(WORDS)
    curve = {"logsnr": [0, 1], "mean": [1, 2], "se": [0, 0], "gap": [1, 1], "gap_se": [0, 0]}
    plots.heat_map(np.eye(count), WORDS, WORDS, word, path)
    plots.scatter(np.eye(count)[:, :2], path, word, np.arange(count), tuple(WORDS))
    plots.lines({word: ([1, 2], [3, 4]) for word in WORDS}, path, word, word, word)
    plots.error_curves(dict.fromkeys(WORDS, curve), path, word)
    assert path.stat().st_size > 1000


def drawn(monkeypatch):
    """A list that every figure enters where it would be written."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    return figures


def test_epochs_are_whole_numbers(monkeypatch):
    """Fault: ticks at epoch 1.5."""
    figures = drawn(monkeypatch)
    plots.lines({"a": ([1, 2], [0.5, 0.4])}, "a.png", "loss", "epoch", "nats")
    ticks = figures[0].axes[0].get_xticks()
    assert (ticks == ticks.round()).all()


def test_rows_are_named_and_their_bars_joined_by_nothing(monkeypatch):
    figures = drawn(monkeypatch)
    intervals = {"interval": ([0, 1], [1.0, 1.5], [2.0, 2.5])}
    plots.rows({"exact": ([1], [2.0])}, intervals, ["one", "two"], "a.png", "title", "nats")
    (panel,) = figures[0].axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["one", "two"]
    bars = panel.collections[0].get_segments()
    assert [bar.tolist() for bar in bars] == [[[1.0, 0], [2.0, 0]], [[1.5, 1], [2.5, 1]]]


def test_a_panel_of_a_training_curve_names_its_own_lines(tmp_path, monkeypatch):
    """Fault: the legend of the first panel listed lines of the second."""
    line = {"epoch": 1, "step": 1, "unit": "nats", "train": {"loss": 1.0, "denoise": 0.5},
            "val": {"loss": 1.0, "denoise": 0.5, "nll_given_z_nats": 2.0}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line))
    figures = drawn(monkeypatch)
    plots.training_curve(tmp_path / "metrics.jsonl", "a.png")
    named = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in figures[0].axes]
    assert named == [["training", "validation"], ["training", "validation", "held-out bound, given z"]]


def test_shares_of_a_map_have_errors_and_are_of_a_sum_beyond_its_own():
    """Fault: 'floor -523 %', of a sum that is nothing but noise."""
    one = {"nats": 0.5, "se": 0.1, "share_on": {"floor": {"mean": 0.25, "se": 0.034}}}
    assert plots.shares(one) == "\nfloor 25 ± 3.4 %"
    assert plots.shares(one | {"se": 0.3}) == plots.shares(one | {"se": None}) == ""
