"""The modes about z: the codes of a data set, saved and plotted, and the diffusion over them. One function a mode."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import config as config_module
import plots
import training
from config import Command
from dataset import registry
from experiment import Trained, batches_of, open_trained
from utils import CommandError, check_writable, write_npz


def encode_split(trained: Trained, dataset: registry.Dataset, count: int | None = None) -> Tensor:
    """Codes of the first `count` images of a split, unaugmented. -> [N, a_dim] on the CPU"""
    return posterior_of_split(trained, dataset, count)[0]


@torch.no_grad()
def posterior_of_split(trained: Trained, dataset: registry.Dataset, count: int | None) -> tuple[Tensor, Tensor | None]:
    """(mean, log-variance) of q(z|x), the second None for a deterministic encoder. [N, a_dim] each, on the CPU"""
    rows = range(min(len(dataset), count or len(dataset)))
    means, logvars = [], []
    with tqdm(total=len(rows), desc=f"encoding {dataset.split}", unit="img") as bar:
        for _, x in batches_of(dataset, trained.config.batch_size, trained.device, rows, trained.config.num_workers):
            mean, logvar = trained.model.posterior(x)
            means.append(mean.cpu())
            logvars += [] if logvar is None else [logvar.cpu()]
            bar.update(len(x))
    return torch.cat(means), torch.cat(logvars) if logvars else None


def refuse_given(trained: Trained) -> None:
    if trained.model.encoder is None:
        raise CommandError(f"--dataset {trained.config.dataset} brings its own z: there is no encoder to ask")


def save_latent(command: Command) -> None:
    """Mode `save_latent`: models/EXP/latents.npz with the codes and labels of a named split (test by default)."""
    trained = open_trained(command)
    refuse_given(trained)
    config = trained.config
    path = config_module.folder(config, "models") / "latents.npz"
    check_writable(path.parent)
    dataset = trained.load_data(config.split or "test")
    if config.disent_metric == "tad" and dataset.spec.labels != "attributes" and "disent_metric" in command.given:
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
    """all_attr [N, K] int64 and attr_names [K], as the metrics read them; no columns for a set without labels."""
    if dataset.labels is None:
        return {"all_attr": np.zeros((count, 0), np.int64), "attr_names": np.array([], dtype=str)}
    labels = dataset.labels[:count].astype(np.int64)
    names = dataset.label_names if dataset.spec.labels != "class" else ("class",)
    return {"all_attr": labels, "attr_names": np.array(names, dtype=str)}


def train_latent_ddim(command: Command) -> None:
    """Mode `train_latent_ddim`: the diffusion over the training split's latents, to models/EXP_latent/."""
    trained = open_trained(command._replace(given=command.given - {"epochs"}))  # --epochs is where this training ends
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
    codes = encode_split(trained, dataset, config.num_images or 5_000).numpy()
    labels = None if dataset.labels is None else dataset.labels[: len(codes), -1]
    title = f"z of {len(codes)} images ({dataset.split})"
    if config.a_dim > 2:
        centred = codes - codes.mean(0)
        _, values, axes = np.linalg.svd(centred, full_matrices=False)
        share = (values[:2] ** 2).sum() / (values**2).sum()
        codes = centred @ axes[:2].T
        title += f", first two principal components ({share:.0%} of the variance)"
    elif config.a_dim == 1:
        codes = np.concatenate([codes, np.zeros_like(codes)], axis=1)
    if labels is not None and dataset.spec.labels != "class":
        title += f"\ncoloured by {dataset.label_names[-1]}"
    path = config_module.folder(config, "imgs") / "plot_latent" / "plot_latent.png"
    names = dataset.label_names if dataset.spec.labels == "class" else ()
    plots.scatter(codes, path, title, labels, names)
    print(f"{path}")
