"""The mode manipulate: an image moved along a label's direction in z, its x_T kept."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Sequence

import numpy as np
import torch

import config as config_module
import plots
from config import Command
from dataset import registry
from experiment import open_trained
from metrics import classification
from modes.latents import class_names, column_names, encode_split, refuse_given
from modes.reconstructions import chosen_image, decode_all, quality
from utils import CommandError, check_writable, did_you_mean

FITTED_ROWS = 10_000  # of the training split, where --num_images is not given


def manipulate(command: Command) -> None:
    """Mode `manipulate`: images at z + s sqrt(a_dim) w for every s of --strengths, x_T that of the image.

    w is the unit normal of a linear classifier of --label, fitted to the training split's standardised codes; z is
    moved where they are standardised (diffusion autoencoders, Preechakul et al. 2022, sec. 5.2, whose s is .3).
    """
    trained = open_trained(command)
    config, coder = trained.config, trained.autoencoder()
    check_writable(config_module.folder(config, "imgs"))
    refuse_given(trained)
    train = trained.load_data("train")
    column, value = chosen_label(train, config.label)
    images, names = zip(*(chosen_image(trained, which) for which in config.img_id), strict=True)
    names = _told_apart(names)
    label = re.sub(r"[^\w.=+-]+", "-", config.label)
    folder = config_module.folder(config, "imgs") / f"manipulate-{'-'.join(names)}-{label}"

    positive = (train.labels[: config.num_images or FITTED_ROWS, column] == value).astype(np.int64)
    _refuse_constant(positive, config.label, len(train))
    codes = encode_split(trained, train, len(positive)).numpy()
    score = classification.evaluate(codes, positive[:, None], [config.label], folds=5, seed=config.r_seed, jobs=1)
    step = torch.from_numpy(classification.direction(codes, positive, config.r_seed)) * math.sqrt(config.a_dim)
    print(f"{config.label}: {positive.mean():.1%} of {len(codes)} training images; AUROC of z "
          f"{score['mean']:.3f} +- {score['se']:.3f} (linear, five folds)")

    strengths = torch.tensor(config.strengths, device=trained.device)[:, None]
    rows = []
    for x in images:
        z, x_T = coder.encode(x)
        moved = decode_all(coder, z + strengths * step.to(z), x_T, config.batch_size)
        print(quality(coder, coder.decode(z, x_T), x))
        rows.append(torch.cat([x, moved]))
    pixels = [plots.to_uint8(row) for row in rows]
    for old in (path for name in names for path in folder.glob(f"{glob.escape(name)}_*.png")):  # of other --strengths
        old.unlink(missing_ok=True)
    for name, row in zip(names, pixels, strict=True):
        for strength, image in zip(config.strengths, row[1:], strict=True):
            plots.write_png(folder / f"{name}_{strength:+g}.png", image)
    heads = ["image", *(f"{strength:+g}" if strength else "0" for strength in config.strengths)]
    title = f"z moved towards {config.label} (AUROC {score['mean']:.3f}), by s sqrt({config.a_dim}) deviations"
    plots.labelled_sheet(np.concatenate(pixels), heads, names, title, folder / f"all.{config.format}")
    print(f"{len(config.strengths)} strengths of {len(rows)} images in {folder} "
          f"(all.{config.format}: image, then a column each)")


def chosen_label(dataset: registry.Dataset, name: str | None) -> tuple[int, int]:
    """The label column, and the value in it, that a name stands for: a class, an attribute, or 'FACTOR=VALUE'.

    Raises CommandError for a name that there is not.
    """
    known = known_labels(dataset)
    if not known:
        raise CommandError(f"--label: {dataset.spec.name} has no labels to find a direction for")
    if name not in known:
        wrong = "--label is needed: what to move along" if name is None else f"--label {name} is unknown"
        near = "" if name is None else did_you_mean(name, known)
        raise CommandError(f"{wrong}; {dataset.spec.name} has {', '.join(known)}{near}")
    return known[name]


def known_labels(dataset: registry.Dataset) -> dict[str, tuple[int, int]]:
    """{name: (column, value)} of all that is there or not: every class, every attribute that is 0 or 1, and by
    column=value every value of the others."""
    found, kind, columns = {}, dataset.spec.labels, column_names(dataset)
    for k, (column, values) in enumerate(zip(columns, class_names(dataset), strict=True) if columns else ()):
        if kind == "attributes" and not any(re.search(r"[^\d.+-]", value) for value in values):
            found[column] = (k, 1)
        else:  # classes are named by themselves
            found |= {name if kind == "class" else f"{column}={name}": (k, value) for value, name in enumerate(values)}
    return found


def _refuse_constant(positive: np.ndarray, name: str, there: int) -> None:
    least = min(positive.sum(), len(positive) - positive.sum())
    if least < 10:
        cure = "raise --num_images" if len(positive) < there else "take another label"
        raise CommandError(f"--label {name}: {positive.sum()} of {len(positive)} training images have it, too few to "
                           f"tell on which side: {cure}")


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names of files: a name that was there before gets a number, x, x-2."""
    before = [names[:k].count(name) for k, name in enumerate(names)]
    return [name if count == 0 else f"{name}-{count + 1}" for name, count in zip(names, before, strict=True)]
