"""z that comes with the data, in place of an encoder's code: labels of the image, or the second image of a pair.

What is drawn for a row is a function of the row's number in the whole set, so that all splits and limits agree.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dataset.base import Given, Spec
from utils import CommandError

INDEPENDENT = "independent"


class Recipe(NamedTuple):
    """How z comes about.

    labels  names of label columns, spaces as underscores, perhaps INDEPENDENT after them: those of another image
    error   of a symmetric channel: a value is right with probability 1 - error, else evenly any other
    code    'onehot', or 'standardised': one number a label, of mean 0 and variance 1 where its values are uniform
    nats    that a pair of images shares (blobs, rectangles)
    """

    labels: tuple[str, ...] = ()
    error: float = 0.0
    code: str = "onehot"
    nats: float = 2.0


def recipe_of(config) -> Recipe:
    """What a config's flags say."""
    return Recipe(config.z_from, config.z_noise, config.z_code, config.pair_nats)


def spec_of(spec: Spec, config) -> Spec:
    """The set with a config's flags: with --z_from, one that gives z."""
    return replace(spec, gives_z=True) if config.z_from else spec


def width_of(spec: Spec, config) -> int | None:
    """Entries of the z that comes with images; None where --a_dim says. Raises CommandError for unknown labels."""
    if spec.z_is_image:
        return (config.input_size or spec.size) ** 2
    return width(spec, recipe_of(config)) if config.z_from else None


def columns(spec: Spec, recipe: Recipe) -> list[int]:
    """The label columns that a recipe names. Raises CommandError for a name that is none of the set's."""
    names = ["class"] if spec.labels == "class" else [name.replace(" ", "_") for name in spec.label_names]
    wanted = [name for name in recipe.labels if name != INDEPENDENT]
    known = bool(spec.factor_sizes) and len(spec.factor_sizes) == len(names)
    for name in wanted:
        if not known or name not in names:
            there = ", ".join(names) if known else "none whose values are known beforehand"
            raise CommandError(f"--z_from {name} is no label of {spec.name} (it has: {there})")
    if not wanted or len(set(wanted)) < len(wanted):
        raise CommandError("--z_from takes names of labels, each once")
    return [names.index(name) for name in wanted]


def width(spec: Spec, recipe: Recipe) -> int:
    """Entries of z."""
    sizes = [spec.factor_sizes[k] for k in columns(spec, recipe)]
    return sum(sizes) if recipe.code == "onehot" else len(sizes)


def of_labels(spec: Spec, labels: np.ndarray, rows: np.ndarray, recipe: Recipe) -> Given:
    """z of some rows [N] of the whole set from their labels [N, K]."""
    import torch

    from rng import Rng

    chosen = columns(spec, recipe)
    sent, sizes = labels[:, chosen], np.array([spec.factor_sizes[k] for k in chosen])
    rng = Rng(0, torch.from_numpy(rows))
    pick, wrong = (rng.uniform(name, len(sizes)).numpy() for name in ("value", "error"))
    independent = INDEPENDENT in recipe.labels
    if independent:
        came = np.minimum((pick * sizes).astype(np.int64), sizes - 1)
    else:
        other = 1 + np.minimum((pick * (sizes - 1)).astype(np.int64), np.maximum(sizes - 2, 0))
        came = np.where(wrong < recipe.error, (sent + other) % sizes, sent)
    exact = None
    if independent:
        exact = 0.0
    elif spec.entropy is not None:  # labels of such a set are uniform
        exact = sum(math.log(size) - channel_entropy(size, recipe.error) for size in sizes.tolist())
    return Given(_coded(came, sizes, recipe.code), exact,
                 classes=(sent, came, tuple(sizes.tolist()), recipe.error, independent),
                 columns=tuple(chosen))


def _coded(values: np.ndarray, sizes: np.ndarray, code: str) -> np.ndarray:
    if code == "onehot":
        return np.concatenate([np.eye(size, dtype=np.float32)[column]
                               for size, column in zip(sizes, values.T, strict=True)], 1)
    return ((values - (sizes - 1) / 2) / np.sqrt((sizes**2 - 1) / 12)).astype(np.float32)


def channel_entropy(size: int, error: float) -> float:
    """H(z|x) of a symmetric channel over `size` values: H_b(e) + e log(size - 1), in nats."""
    inside = [p * math.log(p) for p in (error, 1 - error) if p > 0]
    return -sum(inside) + (error * math.log(size - 1) if size > 1 and error > 0 else 0.0)
