"""Figures: what somebody's text may do to them."""

import numpy as np
import pytest

import plots

WORDS = ["$", "$$", "$x_$", r"\$a$", r"a\b$c$", "$\\frac{$", "{}%s", "äöü", ""]


@pytest.mark.parametrize("word", WORDS)
def test_text_is_never_parsed_as_mathematics(tmp_path, word):
    path = tmp_path / "a.png"
    plots.heat_map(np.eye(2), [word, "b"], ["c", word], word, path)
    plots.scatter(np.eye(2), path, word, np.array([0, 1]), (word, "b"))
    plots.lines({word: ([1, 2], [3, 4]), "b": ([1, 2], [3, 4], [1, 1])}, path, word, word, word)
    curve = {"logsnr": [0, 1], "mean": [1, 2], "se": [0, 0], "gap": [1, 1], "gap_se": [0, 0]}
    plots.error_curves({word: curve, "gaussian": curve}, path, word)
    assert path.stat().st_size > 1000
