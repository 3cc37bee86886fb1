"""Figures: what somebody's text may do to them."""

import numpy as np

import plots

WORDS = ["$", "$$", "$x_$", r"\$a$", r"a\b$c$", "$\\frac{$", "{}%s", "äöü", ""]


def test_text_is_never_parsed_as_mathematics(tmp_path):
    path, count, word = tmp_path / "a.png", len(WORDS), "".join(WORDS)
    curve = {"logsnr": [0, 1], "mean": [1, 2], "se": [0, 0], "gap": [1, 1], "gap_se": [0, 0]}
    plots.heat_map(np.eye(count), WORDS, WORDS, word, path)
    plots.scatter(np.eye(count)[:, :2], path, word, np.arange(count), tuple(WORDS))
    plots.lines({word: ([1, 2], [3, 4]) for word in WORDS}, path, word, word, word)
    plots.error_curves(dict.fromkeys(WORDS, curve), path, word)
    assert path.stat().st_size > 1000
