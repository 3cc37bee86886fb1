"""Small files of images for the tests of data sets, and the one line that refuses one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import registry
from utils import CommandError


def refusal(*args, **kwargs) -> str:
    """The message that registry.load(...) ends with."""
    with pytest.raises(CommandError) as caught:
        registry.load(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def pictures(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def save(path: Path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def numbered(folder: Path, names: list[str], step: int = 1) -> None:
    """An image a name, whose grey value is its place times `step`."""
    for k, name in enumerate(names):
        save(folder / name, np.full((8, 8, 3), step * k, np.uint8))


def by_number(name: str, root: Path, step: int = 1) -> dict[int, tuple[str, list[int] | None]]:
    """What registry.load makes of `numbered` images: number -> (split, labels)."""
    found = {}
    for split in registry.SPLITS:
        part = registry.load(name, split, root=root, size=8)
        for k, value in enumerate(part.raw(range(len(part)))[:, 0, 0, 0].tolist()):
            assert value // step not in found
            found[value // step] = split, None if part.labels is None else part.labels[k].tolist()
    return found
