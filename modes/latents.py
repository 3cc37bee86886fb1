"""The modes about z: the codes of a data set, saved and plotted, and the diffusion over them. One function a mode."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

import config as config_module
import plots
import training
from config import Command
from dataset import registry
from experiment import Trained, batches_of, open_trained
from utils import CommandError, check_writable, progress_bar, write_npz


def encode_split(trained: Trained, dataset: registry.Dataset, count: int | None = None) -> Tensor:
    """Codes of the first `count` images of a split, unaugmented. -> [N, a_dim] on the CPU"""
    return posterior_of_split(trained, dataset, count)[0]


@torch.no_grad()
def posterior_of_split(trained: Trained, dataset: registry.Dataset, count: int | None) -> tuple[Tensor, Tensor | None]:
    """(mean, log-variance) of q(z|x), the second None for a deterministic encoder. [N, a_dim] each, on the CPU"""
    rows = range(min(len(dataset), count or len(dataset)))
    means, logvars = [], []
    with progress_bar(total=len(rows), desc=f"encoding {dataset.split}", unit="img") as bar:
        for _, x in batches_of(dataset, trained.config.batch_size, trained.device, rows, trained.config.num_workers):
            mean, logvar = trained.model.posterior(x)
            means.append(mean.cpu())
            logvars += [] if logvar is None else [logvar.cpu()]
            bar.update(len(x))
    return torch.cat(means), torch.cat(logvars) if logvars else None


def refuse_given(trained: Trained) -> None:
    """Raise CommandError for a model whose z comes with the data."""
    if trained.has_given_z:
        config = trained.config
        source = f"--z_from {' '.join(config.z_from)}" if config.z_from else f"--dataset {config.dataset}"
        raise CommandError(f"{source}: z comes with the data, and there is no encoder to ask")


def save_latent(command: Command) -> None:
    """Mode `save_latent`: models/EXP/latents.npz with the codes and labels of a named split (test by default)."""
    trained = open_trained(command)
    refuse_given(trained)
    config = trained.config
    path = config_module.folder(config, "models") / "latents.npz"
    check_writable(path.parent)
    dataset = trained.load_data(config.split or "test")
    if config.disent_metric == "tad" and dataset.spec.labels != "attributes" and "disent_metric" in command.by_hand:
        print(f"note: tad is for attributes; {config.dataset} has labels of another kind ({dataset.spec.labels})")
    mean, logvar = posterior_of_split(trained, dataset, config.num_images)
    codes = mean.numpy()
    about = {"split": np.array(dataset.split), **origin(trained), "mean": codes.mean(0), "deviation": codes.std(0)}
    about |= {} if logvar is None else {"all_logvar": logvar.numpy()}
    write_npz(path, all_a=codes, **label_arrays(dataset, len(codes)), **about)
    print(f"{len(codes)} latents of {config.dataset} ({dataset.split}) in {path}")


def origin(trained: Trained) -> dict[str, np.ndarray]:
    """What a file of codes says of the model that they come from: its checkpoint's hash, and its config as JSON."""
    stored = config_module.to_dict(trained.stored or trained.config)
    return {"checkpoint_hash": np.array(trained.hash), "config": np.array(json.dumps(stored))}


def label_arrays(dataset: registry.Dataset, count: int) -> dict[str, np.ndarray]:
    """Labels as the metrics read them; no columns for a set without labels.

    all_attr [N, K] int64, attr_names [K], and class_names [K, V]: what each column's classes are called, '' past them.
    """
    if dataset.labels is None:
        return {"all_attr": np.zeros((count, 0), np.int64), "attr_names": np.array([], dtype=str)}
    names = class_names(dataset)
    widest = max(map(len, names))
    padded = [(*column, *[""] * (widest - len(column))) for column in names]
    return {"all_attr": dataset.labels[:count].astype(np.int64), "class_names": np.array(padded, dtype=str),
            "attr_names": np.array(column_names(dataset), dtype=str)}


def train_latent_ddim(command: Command) -> None:
    """Mode `train_latent_ddim`: the diffusion over the training split's latents, to models/EXP_latent/."""
    trained = open_trained(command._replace(by_hand=command.by_hand - {"epochs"}))  # which say where this training ends
    refuse_given(trained)
    for folder in training.latent_folders(trained.config):
        check_writable(folder)
    latents = encode_split(trained, trained.load_data("train"))
    training.train_latent(trained.config, latents, trained.hash)


def plot_latent(command: Command) -> None:
    """Mode `plot_latent`: codes of a split as points; more than two dimensions by their principal components."""
    trained = open_trained(command)
    refuse_given(trained)
    config = trained.config
    check_writable(config_module.folder(config, "imgs"))
    dataset = trained.load_data(config.split or "test")
    column = label_column(dataset, config.label)
    codes = encode_split(trained, dataset, config.num_images or 5_000).numpy()
    title = f"z of {len(codes)} {'images' if dataset.spec.kind == 'image' else 'points'} ({dataset.split})"
    across, up = "z0", "z1" if config.a_dim > 1 else ""
    if config.a_dim > 2:
        across, up = "first component", "second component"
        codes, share = principal_plane(codes)
        title += f", first two principal components ({share:.0%} of the variance)"
    elif config.a_dim == 1:
        codes = np.concatenate([codes, np.zeros_like(codes)], axis=1)
    if column is not None and dataset.spec.labels != "class":
        title += f"\ncoloured by {dataset.label_names[column]}"
    path = config_module.folder(config, "imgs") / "plot_latent" / f"plot_latent.{config.format}"
    labels = None if column is None else dataset.labels[: len(codes), column]
    plots.scatter(codes, path, title, labels, () if column is None else class_names(dataset)[column], across, up)
    print(f"{path}")


def label_column(dataset: registry.Dataset, name: str | None) -> int | None:
    """The column of a label's name, the last where None. Raises CommandError for a name that there is not."""
    names = column_names(dataset)
    if name is not None and name not in names:
        raise CommandError(f"--label {name}: the labels of {dataset.spec.name} are {', '.join(names) or 'none'}")
    return None if not names else names.index(name) if name else len(names) - 1


def column_names(dataset: registry.Dataset) -> tuple[str, ...]:
    """What the label columns are called: 'class' where there is one class, () for a set without labels."""
    if dataset.labels is None:
        return ()
    return dataset.label_names if dataset.spec.labels != "class" else ("class",)


def class_names(dataset: registry.Dataset) -> tuple[tuple[str, ...], ...]:
    """The names of each column's classes, their numbers where they have none."""
    spec = dataset.spec
    if spec.labels == "class":
        return (spec.label_names,)
    numbers = tuple(tuple(map(str, range(size))) for size in spec.factor_sizes)
    return spec.value_names or numbers or ((),) * dataset.labels.shape[1]


def principal_plane(codes: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes [N, n > 2] on their first two principal components [N, 2], and the share of the variance there.

    One code, or equal ones, have no variance: all of it is in the plane.
    """
    centred = codes - codes.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(codes), 2), codes.dtype)
    plane[:, : len(axes)] = centred @ axes[:2].T  # one code has one axis
    total = (values**2).sum()
    return plane, float((values[:2] ** 2).sum() / total) if total > 0 else 1.0
