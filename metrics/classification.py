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
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import Tensor

import modules
from metrics.folds import fold_error
from utils import CommandError, progress_bar


def evaluate(inputs: np.ndarray, labels: np.ndarray, names: list[str], classifier: str = "logistic", folds: int = 5,
             seed: int = 0, jobs: int = -1, axes: int = 512, device: str = "cpu",
             components: int | None = None) -> dict:
    """Held-out accuracy (classes, factors) or AUROC (attributes), per label and on average over labels.

    classifier  logistic: multinomial logistic regression, one a label, its L2 penalty chosen by validation in the fold
                mlp: two hidden layers of 256, all labels at once, each class weighted by the inverse of its frequency
    folds       stratified by the class where there is one label, else random
    axes        inputs wider than this are rotated to so many principal axes of the training fold first: an L2-penalised
                logistic regression does not see a rotation, so that only the small axes are lost
    components  replace the inputs, as they are, by so many principal components of the training fold

    Inputs are standardised by the training fold. A label that takes one value in a training fold, or whose AUROC is
    not defined on the held-out rows, is not scored on that fold (None). Returns measure, chance (accuracy of the most
    frequent value, or .5), per_label [{name, mean, sd, folds, C}], averaged (the names of the labels that every fold
    scores), folds, and mean, sd and se (`fold_error`) of the average over these labels: one that some folds leave out
    would make them averages of different things. Raises CommandError where inputs and labels do not go together, and
    where there is no label that every fold scores.
    """
    _check(inputs, labels, folds)
    attributes = bool(labels.max() <= 1)
    part = fold_numbers(labels, folds, seed)
    scores, costs = np.empty((2, folds, labels.shape[1]))  # NaN where there is no score, or no penalty to choose
    for fold in range(folds):
        train, test = inputs[part != fold], inputs[part == fold]
        if components is not None:
            train, test = _components(train, test, components, seed)
        scores[fold], costs[fold] = _score_fold(train, labels[part != fold], test, labels[part == fold], attributes,
                                                classifier, seed, jobs, axes, device)
    everywhere = ~np.isnan(scores).any(axis=0)
    if not everywhere.any():
        raise CommandError("no label takes several values in every fold: lower --folds, or save more (--num_images)")
    averages = scores[:, everywhere].mean(axis=1).tolist()
    shares = [np.bincount(column).max() / len(column) for column in labels[:, everywhere].T]
    dimensions = train.shape[1]
    return {
        "measure": "auroc" if attributes else "accuracy", "classifier": classifier, "rows": len(inputs),
        "dimensions": dimensions, "axes": min(axes, dimensions),
        "chance": 0.5 if attributes else float(np.mean(shares)),
        "per_label": [_summary(*column) for column in zip(names, scores.T, costs.T, strict=True)],
        "averaged": [name for name, there in zip(names, everywhere, strict=True) if there],
        "folds": averages, "mean": float(np.mean(averages)), "sd": float(np.std(averages, ddof=1)),
        "se": fold_error(averages),
    }


def participation_ratio(codes: np.ndarray) -> float:
    """How many dimensions codes [N, D] are spread over: tr(C)^2 / tr(C^2) of their covariance C.

    1 for codes on a line, D where they vary alike in every direction (Gao et al. 2017). 0 where none varies.
    """
    covariance = np.atleast_2d(np.cov(codes, rowvar=False, dtype=np.float64))
    return float(np.trace(covariance) ** 2 / np.square(covariance).sum()) if covariance.any() else 0.0


def difference(first: dict, second: dict) -> dict:
    """Two results of `evaluate` on the same rows, paired fold by fold: mean of first - second, and its se."""
    folds = [a - b for a, b in zip(first["folds"], second["folds"], strict=True)]
    return {"mean": float(np.mean(folds)), "se": fold_error(folds), "folds": folds}


def _check(inputs: np.ndarray, labels: np.ndarray, folds: int) -> None:
    if inputs.ndim != 2 or labels.ndim != 2 or len(inputs) != len(labels):
        raise CommandError(f"inputs {inputs.shape} and labels {labels.shape} are not [N, D] and [N, K]")
    if len(inputs) < 2 * folds:
        raise CommandError(f"{len(inputs)} rows of {inputs.shape[1]} numbers are too few for {folds} folds: "
                           f"lower --folds, or save more (--num_images)")
    if not np.isfinite(inputs).all():
        raise CommandError(f"{np.count_nonzero(~np.isfinite(inputs))} input values are NaN or infinite")
    if not (labels != labels[:1]).any():
        raise CommandError("every label is constant: there is nothing to classify")


def _summary(name: str, scores: np.ndarray, costs: np.ndarray) -> dict:
    known = scores[~np.isnan(scores)]
    return {
        "name": name,
        "mean": float(known.mean()) if len(known) else None,
        "sd": float(known.std(ddof=1)) if len(known) > 1 else None,
        "folds": [None if np.isnan(score) else float(score) for score in scores],
        "C": [None if np.isnan(cost) else float(cost) for cost in costs],
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
    """Scores of one fold [K], and the chosen C of each [K]; NaN where there is none."""
    costs = np.full(train_labels.shape[1], np.nan)
    if classifier == "mlp":
        predictions = _mlp(*_prepare(train, test, axes, seed), train_labels, seed, device)
    else:
        train, test = _prepare(train, test, axes, seed, rotate=True)
        with parallel_config(backend="loky", inner_max_num_threads=1):
            fits = Parallel(n_jobs=jobs)(delayed(_logistic)(train, column, test, seed) for column in train_labels.T)
        predictions, costs = zip(*fits, strict=True)

    def score(k):
        seen, truth = np.unique(train_labels[:, k]), test_labels[:, k]
        if len(seen) < 2 or (attributes and len(np.unique(truth)) < 2):
            return np.nan
        if attributes:
            return roc_auc_score(truth, predictions[k][:, 1])
        return np.mean(predictions[k].argmax(axis=1) == truth)

    return [score(k) for k in range(train_labels.shape[1])], costs


def _prepare(train: np.ndarray, test: np.ndarray, axes: int, seed: int, rotate: bool = False):
    """Standardise by the training rows; rotate to at most `axes` principal axes, narrow inputs where asked alone."""
    mean, sd = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    sd = np.where(sd > 1e-12, sd, 1.0)
    train, test = (((part - mean) / sd).astype(np.float32) for part in (train, test))
    return _components(train, test, axes, seed) if rotate or train.shape[1] > axes else (train, test)


def _components(train: np.ndarray, test: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both on the leading principal axes of the training rows: `count`, or as many as there are. float32"""
    count = min(count, *train.shape)
    solver = "full" if train.shape[1] <= 512 else "randomized"
    rotation = PCA(count, svd_solver=solver, random_state=seed).fit(train)
    return tuple(rotation.transform(part).astype(np.float32) for part in (train, test))


# ---------------------------------------------------------------------------------------------------------------------
# Logistic regression


COSTS = tuple(10.0**k for k in range(-4, 2))  # C as in scikit-learn: |W|^2 / 2 beside C times the summed loss


def _logistic(train: np.ndarray, label: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Probabilities [N, classes], and the C chosen; of a label that is constant in training, all on that value."""
    result = np.zeros((len(test), int(label.max()) + 1))
    values, codes = np.unique(label, return_inverse=True)
    if len(values) == 1:
        result[:, values[0]] = 1.0
        return result, np.nan
    cost = choose_cost(train, codes, seed)
    result[:, values] = softmax(logits(test, fit_logistic(train, codes, cost)), axis=1)
    return result, cost


def choose_cost(inputs: np.ndarray, label: np.ndarray, seed: int) -> float:
    """The C of COSTS whose fit to four fifths of the rows has the least cross-entropy on the last fifth.

    From strong penalties to weak ones, each started from the last, until the cross-entropy grows.
    """
    held = fold_numbers(label[:, None], 5, seed + 1) == 0
    weights, best, chosen = None, np.inf, COSTS[0]
    for cost in COSTS:
        weights = fit_logistic(inputs[~held], label[~held], cost, weights, classes=int(label.max()) + 1)
        loss = -np.mean(log_softmax(logits(inputs[held], weights), axis=1)[np.arange(held.sum()), label[held]])
        if loss >= best:
            break
        best, chosen = loss, cost
    return chosen


def logits(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N, D] and [D + 1, classes], whose last row is the intercept -> [N, classes] float64"""
    return (inputs @ weights[:-1].astype(inputs.dtype)).astype(np.float64) + weights[-1]


def fit_logistic(inputs: np.ndarray, label: np.ndarray, cost: float, start: np.ndarray | None = None,
                 classes: int | None = None) -> np.ndarray:
    """Multinomial logistic regression, mean cross-entropy + |W|^2 / (2 C N), by L-BFGS. -> [D + 1, classes]

    inputs  [N, D] on their principal axes, centred: the Hessian is at most diag(variances) / 2 (Boehning 1992), by
            whose root the parameters are scaled, so that tens of iterations do where plain L-BFGS takes thousands
    label   [N] int from 0
    """
    rows, width = inputs.shape
    classes = classes or int(label.max()) + 1
    penalty = np.append(np.full(width, 1 / (cost * rows)), 0.0)[:, None]  # none on the intercept
    scale = 1 / np.sqrt(np.append(inputs.var(axis=0, dtype=np.float64), 1.0)[:, None] / 2 + penalty)
    truth = np.arange(rows), label

    def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        weights = scaled.reshape(width + 1, classes) * scale
        log_p = log_softmax(logits(inputs, weights), axis=1)
        residual = np.exp(log_p)
        residual[truth] -= 1
        gradient = np.append(inputs.T @ residual.astype(inputs.dtype), residual.sum(axis=0)[None], axis=0) / rows
        value = -log_p[truth].mean() + (penalty * weights**2).sum() / 2
        return value, ((gradient + penalty * weights) * scale).ravel()

    first = np.zeros((width + 1, classes)) if start is None else start / scale
    found = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B",
                     options={"maxiter": 2000, "maxfun": 4000, "gtol": 1e-5, "ftol": 1e-9, "maxcor": 20})
    return found.x.reshape(width + 1, classes) * scale


def direction(codes: np.ndarray, label: np.ndarray, seed: int = 0) -> np.ndarray:
    """The step in z [D] that is a unit step, among standardised codes, along a logistic regression's normal.

    codes   [N, D] float;  label: [N], 0 or 1. The penalty is chosen by validation.
    """
    centred, sd = codes - codes.mean(axis=0, dtype=np.float64), codes.std(axis=0, dtype=np.float64)
    standard = centred / np.where(sd > 1e-12, sd, np.inf)
    rotation = PCA(svd_solver="full").fit(standard)
    rotated = rotation.transform(standard).astype(np.float32)
    weights = fit_logistic(rotated, label, choose_cost(rotated, label, seed))
    normal = (weights[:-1, 1] - weights[:-1, 0]) @ rotation.components_
    return (normal / np.linalg.norm(normal) * sd).astype(np.float32)


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
    for _ in progress_bar(range(steps), desc=bar, unit="step", disable=bar is None, delay=2):
        if not len(order):
            order = generator.permutation(len(labels))
        rows, order = order[:batch_size], order[batch_size:]
        loss = heads_loss(network(batch(rows)), torch.from_numpy(labels[rows]).to(device), heads, weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        cosine.step()
    network.eval()


def _mlp(train, test, labels, seed: int, device: str, hidden: int = 256, epochs: int = 30, batch_size: int = 128):
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
def right_answers(network: modules.Classifier, batch: Callable[[np.ndarray], Tensor], labels: np.ndarray,
                  heads: list[int]) -> np.ndarray:
    """Whether each head gets a row's label right. -> bool [N, K]"""
    right = []
    for rows in np.array_split(np.arange(len(labels)), -(-len(labels) // 256)):
        parts = network(batch(rows)).split(heads, dim=1)
        guesses = torch.stack([part.argmax(1) for part in parts], dim=1).cpu().numpy()
        right.append(guesses == labels[rows])
    return np.concatenate(right)
