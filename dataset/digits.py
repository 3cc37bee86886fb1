"""digits: scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 levels."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from dataset.base import Arrays, Source, Spec, cut

SPECS = (Spec("digits", 8, 1, 17, "class", tuple("0123456789"), (10,), width=16, depth=3),)


def read(spec: Spec, root: Path) -> Source:
    images, labels = _parsed()
    return Source(Arrays(images, levels=17), labels, cut(len(images), 0.1, 0.3))


@functools.cache
def _parsed() -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 1, 8, 8] uint8 and labels [N, 1], of a text file that takes a tenth of a second to read."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8)[:, None], bunch.target.astype(np.int64)[:, None]
