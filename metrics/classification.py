"""What a classifier reads from latents, inferred noise or pixels, and the small image classifier of the offline FID.

    inputs   [N, D] float: z, x_T or pixels, a row an image
    labels   [N, K] int from 0: a class (K = 1), factors, or attributes, which are labels that are all 0 or 1

Attributes are scored by AUROC, classes and factors by accuracy; each label on held-out folds, and their mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed, parallel_config
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import trange

import modules
from utils import CommandError


def evaluate(inputs: np.ndarray, labels: np.ndarray, names: list[str], classifier: str = "logistic", folds: int = 5,
             seed: int = 0, jobs: int = -1, axes: int = 512, device: str = "cpu") -> dict:
    """Held-out accuracy (classes, factors) or AUROC (attributes), per label and on average over labels.

    classifier  logistic: scikit-learn's, one a label, with its default L2 penalty
                mlp: two hidden layers of 256, all labels at once, each class weighted by the inverse of its frequency
    folds       stratified by the class where there is one label, else random
    axes        inputs wider than this are rotated to so many principal axes of the training fold first: an L2-penalised
                logistic regression does not see a rotation, so that only the small axes are lost

    Inputs are standardised by the training fold. A label that takes one value in a training fold, or whose AUROC is
    not defined on the held-out rows, is not scored on that fold (None). Returns measure, chance (accuracy of the most
    frequent value, or .5), per_label [{name, mean, sd, folds}], folds, mean and sd of the average over labels.
    Raises CommandError where inputs and labels do not go together.
    """
    _check(inputs, labels, folds)
    attributes = bool(labels.max() <= 1)
    part = fold_numbers(labels, folds, seed)
    scores = np.array([
        _score_fold(inputs[part != fold], labels[part != fold], inputs[part == fold], labels[part == fold],
                    attributes, classifier, seed, jobs, axes, device)
        for fold in range(folds)
    ], dtype=np.float64)  # [folds, K], NaN where there is no score
    scored = ~np.isnan(scores).all(axis=1)
    averages = [float(np.nanmean(of_fold)) for of_fold in scores[scored]]
    shares = [np.bincount(column).max() / len(column) for column in labels.T]
    return {
        "measure": "auroc" if attributes else "accuracy", "classifier": classifier, "rows": len(inputs),
        "dimensions": inputs.shape[1], "axes": min(axes, inputs.shape[1]),
        "chance": 0.5 if attributes else float(np.mean(shares)),
        "per_label": [_summary(name, column) for name, column in zip(names, scores.T, strict=True)],
        "folds": averages, "mean": float(np.mean(averages)), "sd": float(np.std(averages, ddof=1)),
    }


def _check(inputs: np.ndarray, labels: np.ndarray, folds: int) -> None:
    if inputs.ndim != 2 or labels.ndim != 2 or len(inputs) != len(labels):
        raise CommandError(f"inputs {inputs.shape} and labels {labels.shape} are not [N, D] and [N, K]")
    if len(inputs) < 2 * folds:
        raise CommandError(f"{len(inputs)} rows are too few for {folds} folds")
    if not np.isfinite(inputs).all():
        raise CommandError(f"{np.count_nonzero(~np.isfinite(inputs))} input values are NaN or infinite")
    if not (labels != labels[:1]).any():
        raise CommandError("every label is constant: there is nothing to classify")


def _summary(name: str, scores: np.ndarray) -> dict:
    known = scores[~np.isnan(scores)]
    return {
        "name": name,
        "mean": float(known.mean()) if len(known) else None,
        "sd": float(known.std(ddof=1)) if len(known) > 1 else None,
        "folds": [None if np.isnan(score) else float(score) for score in scores],
    }


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Which fold holds each row out, [N] in 0 .. folds - 1; with one label, its values are spread evenly."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    if labels.shape[1] == 1:
        shuffled = shuffled[np.argsort(labels[shuffled, 0], kind="stable")]
    part = np.empty(len(labels), dtype=np.int64)
    part[shuffled] = np.arange(len(labels)) % folds
    return part


def _score_fold(train, train_labels, test, test_labels, attributes, classifier, seed, jobs, axes, device):
    """Scores of one fold, [K] with None where there is none."""
    train, test = _prepare(train, test, axes, seed)
    if classifier == "mlp":
        predictions = _mlp(train, train_labels, test, seed, device)
    else:
        with parallel_config(backend="loky", inner_max_num_threads=1):
            predictions = Parallel(n_jobs=jobs)(delayed(_logistic)(train, column, test) for column in train_labels.T)

    def score(k):
        seen, truth = np.unique(train_labels[:, k]), test_labels[:, k]
        if len(seen) < 2 or (attributes and len(np.unique(truth)) < 2):
            return None
        if attributes:
            return roc_auc_score(truth, predictions[k][:, 1])
        return np.mean(predictions[k].argmax(axis=1) == truth)

    return [score(k) for k in range(train_labels.shape[1])]


def _prepare(train: np.ndarray, test: np.ndarray, axes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardise by the training rows; rotate wide inputs to their principal axes."""
    mean, sd = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    sd = np.where(sd > 1e-12, sd, 1.0)
    train, test = (((part - mean) / sd).astype(np.float32) for part in (train, test))
    if train.shape[1] <= axes:
        return train, test
    rotation = PCA(min(axes, len(train)), svd_solver="randomized", random_state=seed).fit(train)
    return rotation.transform(train), rotation.transform(test)


def _logistic(train: np.ndarray, label: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Probabilities [N, classes]; of a label that is constant in training, all on that value."""
    result = np.zeros((len(test), int(label.max()) + 1))
    values = np.unique(label)
    if len(values) == 1:
        result[:, values[0]] = 1.0
    else:
        result[:, values] = LogisticRegression(max_iter=1000).fit(train, label).predict_proba(test)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Networks: one head of outputs a label, all in one vector of logits


def head_sizes(labels: np.ndarray) -> list[int]:
    """Number of values of each label. [N, K] -> K numbers, 2 at least"""
    return [max(2, int(values) + 1) for values in labels.max(axis=0)]


def heads_loss(logits: Tensor, labels: Tensor, heads: list[int], weights: list[Tensor | None]) -> Tensor:
    """Sum over labels of the mean cross-entropy. logits [B, sum of heads], labels [B, K] -> scalar, nats"""
    parts = zip(logits.split(heads, dim=1), labels.unbind(1), weights, strict=True)
    return sum(F.cross_entropy(part, label, weight) for part, label, weight in parts)


def class_weights(labels: np.ndarray, heads: list[int]) -> list[np.ndarray]:
    """Inverse frequencies, 1 on average over rows; 0 for a value that does not occur."""
    counts = [np.bincount(column, minlength=size) for column, size in zip(labels.T, heads, strict=True)]
    return [np.where(count > 0, len(labels) / (np.count_nonzero(count) * np.maximum(count, 1)), 0) for count in counts]


def _fit(network: torch.nn.Module, batch: Callable[[np.ndarray], Tensor], labels: np.ndarray, heads: list[int],
         weights: list[Tensor | None], epochs: int, batch_size: int, learning_rate: float, seed: int,
         max_steps: int | None = None, bar: str | None = None) -> None:
    """Minimise `heads_loss` with AdamW along a cosine. `batch` turns row numbers into inputs, on the right device."""
    steps = epochs * -(-len(labels) // batch_size)
    steps = min(steps, max_steps or steps)
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = np.random.default_rng(seed)
    device = next(network.parameters()).device
    network.train()
    order = np.empty(0, dtype=np.int64)
    for _ in trange(steps, desc=bar, unit="step", disable=bar is None, delay=2):
        if not len(order):
            order = generator.permutation(len(labels))
        rows, order = order[:batch_size], order[batch_size:]
        loss = heads_loss(network(batch(rows)), torch.from_numpy(labels[rows]).to(device), heads, weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        cosine.step()
    network.eval()


def _mlp(train, labels, test, seed: int, device: str, hidden: int = 256, epochs: int = 30, batch_size: int = 128):
    """Class probabilities of the held-out rows, [N, classes] a label."""
    heads = head_sizes(labels)
    inputs = torch.from_numpy(train).to(device)
    weights = [torch.from_numpy(weight).float().to(device) for weight in class_weights(labels, heads)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = modules.mlp(train.shape[1], hidden, sum(heads)).to(device)
    _fit(network, lambda rows: inputs[rows], labels, heads, weights, epochs, batch_size, 1e-3, seed)
    with torch.no_grad():
        logits = network(torch.from_numpy(test).to(device))
    return [part.softmax(1).double().cpu().numpy() for part in logits.split(heads, dim=1)]


def train_images(batch: Callable[[np.ndarray], Tensor], labels: np.ndarray, heads: list[int], shape: tuple[int, ...],
                 epochs: int, batch_size: int = 64, learning_rate: float = 1e-3, width: int = 32, seed: int = 0,
                 device: str = "cpu", max_steps: int | None = None) -> modules.Classifier:
    """Train the small image classifier, one head of outputs a label.

    batch   row numbers [B] -> float32 images [B, *shape] in [-1, 1] on `device`
    labels  [N, K] int;  heads: number of values of each;  shape: (C, H, W)
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = modules.Classifier(shape[0], shape[1], sum(heads), width).to(device)
    _fit(network, batch, labels, heads, [None] * len(heads), epochs, batch_size, learning_rate, seed, max_steps,
         bar="classifier")
    return network


@torch.no_grad()
def accuracy(network: modules.Classifier, batch: Callable[[np.ndarray], Tensor], labels: np.ndarray,
             heads: list[int]) -> list[float]:
    """Share of rows whose label each head gets right. -> K numbers"""
    right = np.zeros(len(heads))
    for rows in np.array_split(np.arange(len(labels)), -(-len(labels) // 256)):
        parts = network(batch(rows)).split(heads, dim=1)
        guesses = torch.stack([part.argmax(1) for part in parts], dim=1).cpu().numpy()
        right += (guesses == labels[rows]).sum(axis=0)
    return (right / len(labels)).tolist()
