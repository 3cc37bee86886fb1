"""How well single codes stand for single factors: DCI, TAD, MIG, SAP, FactorVAE, modularity. Codes and labels only.

    codes    [N, L] float: the latents, a row an image
    factors  [N, K] int: what is known of each image; attributes are factors that are 0 or 1
    importance, AUROC and mutual information are matrices [L, K]: codes down, factors across

Every score is a function of (train_codes, train_factors, test_codes, test_factors): what has to be chosen or fitted is
chosen on the training rows and reported on the held-out ones. `evaluate` does that on five folds. A factor that is
constant over the training rows says nothing of the codes: it is left out. A score that compares factors with each other
is None, undefined, where one factor alone is left; no score is ever NaN.

A new metric is such a function with a row in METRICS beside it: the program then offers it and keeps all it returns.
Unless a function says otherwise, definitions are those of disentanglement_lib (Locatello et al., ICML 2019).
SciPy and scikit-learn are imported where they are used: --help and mistakes are answered without waiting for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed, parallel_config

from metrics.folds import fold_error, jackknife_error
from utils import CommandError


@dataclass(frozen=True)
class Metric:
    """A row of METRICS, which is written below its function.

    score    (train_codes, train_factors, test_codes, test_factors) and the named `options` -> {name: value}: a number,
             None where one factor alone leaves it undefined, or an array, of which [L, K] is drawn as a heat map
    returns  its scores, in words
    labels   'any', or 'attributes' where every label must be 0 or 1
    options  which of predictor, seed and jobs the function takes by name
    held_out which of its scores are of the held-out rows; the others are of the training rows
    """

    score: Callable[..., dict]
    returns: str
    labels: str = "any"
    options: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {}


def check(codes: np.ndarray, factors: np.ndarray, folds: int, source: str = "the codes") -> None:
    """Raise CommandError, naming `source`, where codes and factors cannot be compared on so many folds."""
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise CommandError(f"{source}: codes {codes.shape} and labels {factors.shape} are not [N, L] and [N, K]")
    if len(codes) < 2 * folds:
        raise CommandError(f"{source}: {len(codes)} rows are too few for {folds} folds: lower --folds, or save "
                           f"more (--num_images)")
    if codes.shape[1] < 2:
        raise CommandError(f"{source}: disentanglement compares codes with each other, and there is only one")
    if not np.isfinite(codes).all():
        raise CommandError(f"{source}: {np.count_nonzero(~np.isfinite(codes))} code values are NaN or infinite")
    if not varying(factors).any():
        raise CommandError(f"{source}: every label is constant")


def varying(factors: np.ndarray) -> np.ndarray:
    """Which factors take more than one value. [N, K] -> [K] bool"""
    return (factors != factors[:1]).any(axis=0)


def _in_parallel(calls, jobs: int) -> list:
    """Run `delayed` calls in processes, one BLAS thread in each, in the order given."""
    with parallel_config(backend="loky", inner_max_num_threads=1):
        return Parallel(n_jobs=jobs, batch_size=1, pre_dispatch="all")(calls)


# ---------------------------------------------------------------------------------------------------------------------
# DCI: disentanglement, completeness, informativeness


def dci(train_codes, train_factors, test_codes, test_factors, predictor: str = "gbt", seed: int = 0, jobs: int = -1):
    """DCI (Eastwood & Williams, ICLR 2018): how concentrated the importances of codes for predicting factors are.

    predictor  gbt: scikit-learn's GradientBoostingClassifier with its defaults, the trees of disentanglement_lib
               forest: RandomForestClassifier with its defaults
               lasso: the paper's own, on standardised codes; |coefficient|; factor values taken as ordered numbers
               fast: 50 extremely randomised trees that see all codes at each split, leaves of 5 rows at least
    jobs       processes that fit factors at a time, -1 for one a core; the result does not depend on it

    Returns disentanglement, completeness, informativeness_train and _test (mean accuracy over factors), all in [0, 1],
    and importance [L, K] (0 for a factor that is constant in training). With one varying factor every code is of that
    factor alone, and disentanglement is None.
    """
    used = np.flatnonzero(varying(train_factors))
    classes = [len(np.unique(train_factors[:, k])) for k in used]
    order = used[np.argsort(classes)[::-1]]  # the trees of a factor grow with its classes: largest first packs best
    fits = _in_parallel(
        (
            delayed(_fit_factor)(predictor, seed, train_codes, train_factors[:, k], test_codes, test_factors[:, k])
            for k in order
        ),
        jobs,
    )
    importance = np.zeros((train_codes.shape[1], train_factors.shape[1]))
    importance[:, order] = np.stack([column for column, _, _ in fits], axis=1)
    return {
        "disentanglement": disentanglement(importance[:, used]),
        "completeness": completeness(importance[:, used]),
        "informativeness_train": float(np.mean([train for _, train, _ in fits])),
        "informativeness_test": float(np.mean([test for _, _, test in fits])),
        "importance": importance,
    }


METRICS["dci"] = Metric(
    dci, "disentanglement, completeness and informativeness", options=("predictor", "seed", "jobs"),
    held_out=("informativeness_test",)
)


def _fit_factor(predictor, seed, train_codes, train_factor, test_codes, test_factor):
    """(importance [L], training accuracy, held-out accuracy) of one factor."""
    if predictor == "lasso":
        return _fit_lasso(seed, train_codes, train_factor, test_codes, test_factor)
    from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier

    trees = {
        "gbt": lambda: GradientBoostingClassifier(random_state=seed),
        "forest": lambda: RandomForestClassifier(random_state=seed),
        "fast": lambda: ExtraTreesClassifier(50, max_features=None, min_samples_leaf=5, random_state=seed),
    }
    model = trees[predictor]().fit(train_codes, train_factor)
    return model.feature_importances_, model.score(train_codes, train_factor), model.score(test_codes, test_factor)


def _fit_lasso(seed, train_codes, train_factor, test_codes, test_factor):
    """As `_fit_factor`. The prediction is the factor value nearest to the regression's."""
    from sklearn.linear_model import LassoCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = np.unique(train_factor)
    model = make_pipeline(StandardScaler(), LassoCV(random_state=seed)).fit(train_codes, train_factor)

    def accuracy(codes, factor):
        nearest = np.abs(model.predict(codes)[:, None] - values).argmin(axis=1)
        return float(np.mean(values[nearest] == factor))

    importance = np.abs(model[-1].coef_)
    return importance, accuracy(train_codes, train_factor), accuracy(test_codes, test_factor)


def disentanglement(importance: np.ndarray) -> float | None:
    """1 - entropy over factors of each code's importances, averaged by the codes' importance. [L, K] -> [0, 1]

    None for a single factor, on which every code would be concentrated.
    """
    return _concentration(importance)


def completeness(importance: np.ndarray) -> float | None:
    """1 - entropy over codes of each factor's importances, averaged by the factors' importance. [L, K] -> [0, 1]"""
    return _concentration(importance.T)


def _concentration(importance: np.ndarray) -> float | None:
    from scipy import stats

    columns = importance.shape[1]
    if columns == 1:
        return None
    each = 1.0 - stats.entropy(importance + 1e-11, base=columns, axis=1)  # [rows]; the reference's offset
    weight = importance.sum(axis=1)
    return float(each @ weight / weight.sum()) if weight.any() else float(each.mean())


# ---------------------------------------------------------------------------------------------------------------------
# TAD: total AUROC difference


def auroc_matrix(codes: np.ndarray, labels: np.ndarray, block: int = 1 << 22) -> np.ndarray:
    """AUROC of each code as a detector of each attribute: codes [N, L], labels [N, K] of 0 and 1 -> [L, K].

    The rank-sum form (Mann & Whitney 1947) with average ranks for ties: each code is ranked once, and all attributes
    follow from one matrix product, exactly. A constant attribute has no AUROC and gets .5. `block` bounds the number
    of code values that are ranked at a time, and so the memory.
    """
    from scipy import stats

    positive = labels.sum(axis=0, dtype=np.float64)  # [K]
    pairs = positive * (len(labels) - positive)
    weights = np.ascontiguousarray(labels, dtype=np.float64)
    width = max(1, block // len(codes))
    ranks = (stats.rankdata(codes[:, at : at + width], axis=0).T for at in range(0, codes.shape[1], width))
    sums = [of_block @ weights for of_block in ranks]
    excess = np.concatenate(sums) - positive * (positive + 1) / 2  # [L, K]: pairs in order, a tie counting half
    return np.where(pairs > 0, excess / np.maximum(pairs, 1), 0.5)


def entropy_reduction(attributes: np.ndarray) -> np.ndarray:
    """The largest share of each attribute's entropy that one other attribute explains. [N, K] -> [K] in [0, 1]

    A constant attribute has no entropy left to explain: 1.
    """
    shared = mutual_information(attributes, attributes)
    entropy = shared.diagonal().copy()
    np.fill_diagonal(shared, 0.0)
    return np.where(entropy > 0, shared.max(axis=1) / np.where(entropy > 0, entropy, 1.0), 1.0)


def tad(train_codes, train_attributes, test_codes, test_attributes, threshold: float = 0.75, proxy: float = 0.2):
    """Total AUROC difference (Yeats et al., NashAE, ECCV 2022), on held-out rows, with the published thresholds.

    An attribute counts where no other attribute explains more than `proxy` of its entropy, and where it is captured:
    its best code detects it with an AUROC of `threshold` at least. Each one that counts adds the AUROC of its best
    code minus that of its second best. Codes, their signs and proxies are chosen on the training rows; the AUROCs
    that are compared with the threshold and summed are the held-out rows'. The published program scores the rows
    that it chose on: pass the same rows twice for that.

    Returns tad, captured (how many attributes count), auroc [L, K] of the training rows, and difference [K], the
    attributes that do not count as 0. Raises CommandError for labels other than 0 and 1.
    """
    if not np.isin(train_attributes, (0, 1)).all() or not np.isin(test_attributes, (0, 1)).all():
        raise CommandError("TAD needs attributes, labels that are 0 or 1: use --metrics dci for classes and factors")
    auroc = auroc_matrix(train_codes, train_attributes)
    best_two = np.argsort(-np.abs(auroc - 0.5), axis=0, kind="stable")[:2]  # [2, K]
    sign = np.sign(np.take_along_axis(auroc, best_two, axis=0) - 0.5)
    held_out = auroc_matrix(test_codes, test_attributes)
    best, second = 0.5 + sign * (np.take_along_axis(held_out, best_two, axis=0) - 0.5)  # [K] each
    counts = (best >= threshold) & (entropy_reduction(train_attributes) <= proxy)
    difference = np.where(counts, best - second, 0.0)
    return {"tad": float(difference.sum()), "captured": int(counts.sum()), "auroc": auroc, "difference": difference}


METRICS["tad"] = Metric(tad, "total AUROC difference, and attributes captured", labels="attributes",
                        held_out=("tad", "captured"))


# ---------------------------------------------------------------------------------------------------------------------
# Scores from mutual information: MIG, modularity


def bins(codes: np.ndarray, count: int = 20) -> np.ndarray:
    """The number of the equal-width bin, between a code's least and greatest value, of each entry. [N, L] int"""
    codes = codes.astype(np.float64)
    return np.stack([np.digitize(code, np.histogram_bin_edges(code, count)[:-1]) for code in codes.T], axis=1)


def mutual_information(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Plug-in mutual information, in nats, of each column pair of two tables of integers. [N, L], [N, K] -> [L, K]"""
    a_ids = [np.unique(column, return_inverse=True)[1] for column in a.T]
    b_ids = [np.unique(column, return_inverse=True)[1] for column in b.T]
    joint = np.array([[_entropy(i * (j.max() + 1) + j) for j in b_ids] for i in a_ids])
    information = np.array([_entropy(i) for i in a_ids])[:, None] + np.array([_entropy(j) for j in b_ids]) - joint
    return np.where(information > 1e-12, information, 0.0)  # rounding aside, it is never negative


def _entropy(ids: np.ndarray) -> float:
    counts = np.bincount(ids)
    share = counts[counts > 0] / len(ids)
    return float(-(share * np.log(share)).sum())


def mig(codes: np.ndarray, factors: np.ndarray, test_codes=None, test_factors=None) -> dict:
    """Mutual information gap (Chen et al., NeurIPS 2018): for each factor the information of the best code minus that
    of the second best, over the factor's entropy. Codes are cut into 20 bins. Nothing is fitted: held-out rows are not
    looked at.

    Returns mig in [0, 1] and information [L, K] in nats (0 for a constant factor).
    """
    used = varying(factors)
    information = mutual_information(bins(codes), factors)
    entropy = np.array([_entropy(np.unique(column, return_inverse=True)[1]) for column in factors[:, used].T])
    return {"mig": float(np.mean(_gap(information[:, used]) / entropy)), "information": information}


METRICS["mig"] = Metric(mig, "mutual information gap")


def _gap(scores: np.ndarray) -> np.ndarray:
    """Best code's minus second best code's. [L, K] -> [K]"""
    second, best = np.sort(scores, axis=0)[-2:]
    return best - second


def modularity(codes: np.ndarray, factors: np.ndarray, test_codes=None, test_factors=None) -> dict:
    """Modularity (Ridgeway & Mozer, NeurIPS 2018): 1 - the mean, over a code's other factors, of the squared
    information relative to that of its best factor; averaged over codes, 0 for a code that knows nothing.

    It has no scale: sampling noise in the information of codes that know almost nothing leaves them a score far above
    0 (about .65 for 20 bins and the factors of 3D Shapes). Read it beside MIG. A single factor has no others: None.
    Nothing is fitted: held-out rows are not looked at.
    """
    used = varying(factors)
    if used.sum() == 1:
        return {"modularity": None}
    squared = mutual_information(bins(codes), factors[:, used]) ** 2
    best = squared.max(axis=1)
    others = squared.shape[1] - 1
    deviation = (squared.sum(axis=1) - best) / (np.where(best > 0, best, 1.0) * others)
    return {"modularity": float(np.mean(np.where(best > 0, 1.0 - deviation, 0.0)))}


METRICS["modularity"] = Metric(modularity, "modularity")


# ---------------------------------------------------------------------------------------------------------------------
# SAP and FactorVAE


def sap(train_codes, train_factors, test_codes, test_factors, jobs: int = -1) -> dict:
    """Separated attribute predictability (Kumar et al., ICLR 2018): the best code's score minus the second best's,
    averaged over factors, in both published forms.

    sap              score = held-out accuracy of a linear SVM on that code alone (C = .01, balanced classes), for
                     discrete factors. A perfect code of a balanced binary factor gives .5, not 1: the second best
                     still guesses half of them
    sap_correlation  score = squared correlation of code and factor, for ordered factors: 0 to 1
    """
    used = np.flatnonzero(varying(train_factors))
    columns = _in_parallel(
        (delayed(_svm_accuracies)(train_codes, train_factors[:, k], test_codes, test_factors[:, k]) for k in used), jobs
    )
    squared = _correlation(train_codes, train_factors[:, used]) ** 2
    return {"sap": float(_gap(np.stack(columns, axis=1)).mean()), "sap_correlation": float(_gap(squared).mean())}


METRICS["sap"] = Metric(sap, "separated attribute predictability, two forms", options=("jobs",), held_out=("sap",))


def _svm_accuracies(train_codes, train_factor, test_codes, test_factor) -> np.ndarray:
    """Accuracy of each code alone. -> [L]"""
    from sklearn.svm import LinearSVC

    def accuracy(column):
        # dual=False reaches the same optimum as the reference's randomised dual, without its randomness
        model = LinearSVC(C=0.01, class_weight="balanced", dual=False).fit(train_codes[:, column], train_factor)
        return model.score(test_codes[:, column], test_factor)

    return np.array([accuracy([code]) for code in range(train_codes.shape[1])])


def _correlation(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Pearson's, [L, K]; 0 for a code that does not vary."""
    codes = codes - codes.mean(axis=0, dtype=np.float64)
    factors = factors - factors.mean(axis=0)
    spread = np.linalg.norm(codes, axis=0)[:, None] * np.linalg.norm(factors, axis=0)
    return codes.T @ factors / np.where(spread > 1e-12, spread, np.inf)


def factor_vae(train_codes, train_factors, test_codes, test_factors, seed: int = 0, votes: int = 10_000,
               held_out_votes: int = 5_000, batch: int = 64) -> dict:
    """FactorVAE score (Kim & Mnih, ICML 2018): accuracy of telling which factor was held fixed, by majority vote, from
    which code then varies least, relative to its overall variance.

    The definition draws fresh images with one factor fixed. On a saved sample, a vote instead draws `batch` rows with
    replacement among those that share a random row's value of that factor: the same law, for the empirical
    distribution. Codes that do not vary are left out. Chance is one over the number of factors, not 0.

    Returns factor_vae (held-out votes), factor_vae_train and factor_vae_chance. With one varying factor chance is 1,
    and the other two are None, as where no value of a factor stands twice.
    """
    used, alive = varying(train_factors), varying(train_codes)
    chance = float(1 / used.sum())
    if used.sum() == 1:
        return {"factor_vae": None, "factor_vae_train": None, "factor_vae_chance": chance}
    if not alive.any():
        return {"factor_vae": 0.0, "factor_vae_train": 0.0, "factor_vae_chance": chance}
    generator = np.random.default_rng(seed)
    scale = train_codes[:, alive].std(axis=0, ddof=1, dtype=np.float64)
    train = _votes(train_codes[:, alive] / scale, train_factors[:, used], generator, votes, batch)
    test = _votes(test_codes[:, alive] / scale, test_factors[:, used], generator, held_out_votes, batch)
    if not (train.any() and test.any()):  # every value of a factor stands once
        return {"factor_vae": None, "factor_vae_train": None, "factor_vae_chance": chance}
    winner = train.argmax(axis=1)  # [L]: the factor that each code votes for
    code = np.arange(len(winner))
    return {
        "factor_vae": float(test[code, winner].sum() / test.sum()),
        "factor_vae_train": float(train[code, winner].sum() / train.sum()),
        "factor_vae_chance": chance,
    }


METRICS["factorvae"] = Metric(factor_vae, "FactorVAE score, and its chance level", options=("seed",),
                              held_out=("factor_vae",))


def _votes(codes, factors, generator, count: int, batch: int, block: int = 1 << 22) -> np.ndarray:
    """How often each code varied least while each factor was fixed. [N, L], [N, K] -> [L, K] counts"""
    order = np.argsort(factors, axis=0, kind="stable")  # [N, K]: rows of one value side by side
    ordered = np.take_along_axis(factors, order, axis=0)
    result = np.zeros((codes.shape[1], factors.shape[1]), dtype=np.int64)
    width = max(1, block // (batch * codes.shape[1]))
    for at in range(0, count, width):
        factor = generator.integers(factors.shape[1], size=min(width, count - at))  # [V]
        value = factors[generator.integers(len(factors), size=len(factor)), factor]
        unit = generator.random((len(factor), batch))
        for k in np.unique(factor):
            mine = factor == k
            low, high = (np.searchsorted(ordered[:, k], value[mine], side) for side in ("left", "right"))
            shared = high - low > 1  # a value that one row alone has fixes every code: no vote
            low, high = low[shared, None], high[shared, None]
            place = low + (unit[mine][shared] * (high - low)).astype(np.int64)
            steadiest = codes[order[place, k]].var(axis=1).argmin(axis=1)  # [votes of k]
            result[:, k] += np.bincount(steadiest, minlength=len(result))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Folds, and intervals over seeds


def evaluate(codes: np.ndarray, factors: np.ndarray, metrics: tuple[str, ...] = ("dci",), predictor: str = "gbt",
             folds: int = 5, seed: int = 0, jobs: int = -1) -> dict:
    """Scores of the named METRICS on shuffled folds; MIG and modularity look at the training rows, the larger part.

    Returns folds, {score: [folds values]}; mean, sd (over folds, ddof 1) and se (metrics/folds.py), {score: number},
    None where a fold leaves the score undefined; and every array averaged over folds, {metric: {name: array}}. se is of
    other rows, and says nothing of what another training seed would change.
    Raises CommandError where codes and factors cannot be compared or are fewer than twice the folds.
    """
    from sklearn.model_selection import KFold

    check(codes, factors, folds)
    settings = {"predictor": predictor, "seed": seed, "jobs": jobs}
    values: dict[str, list[float | None]] = {}
    arrays: dict[str, dict[str, list[np.ndarray]]] = {}
    for train, test in KFold(folds, shuffle=True, random_state=seed).split(codes):
        split = codes[train], factors[train], codes[test], factors[test]
        for metric in metrics:
            row = METRICS[metric]
            for name, value in row.score(*split, **{option: settings[option] for option in row.options}).items():
                if np.ndim(value):
                    arrays.setdefault(metric, {}).setdefault(name, []).append(value)
                else:
                    values.setdefault(name, []).append(value if value is None else float(value))
    held_out = {name for metric in metrics for name in METRICS[metric].held_out}
    return {
        "folds": values,
        "se": {name: _unless_undefined(fold_error if name in held_out else jackknife_error, of_folds)
               for name, of_folds in values.items()},
        "mean": {name: _unless_undefined(np.mean, of_folds) for name, of_folds in values.items()},
        "sd": {name: _unless_undefined(_deviation, of_folds) for name, of_folds in values.items()},
        "matrices": {
            metric: {name: np.mean(of_folds, axis=0) for name, of_folds in named.items()}
            for metric, named in arrays.items()
        },
    }


def _unless_undefined(statistic: Callable, values: list[float | None]) -> float | None:
    """A statistic of the values, None where any of them is undefined: an average over the rest is of another score."""
    return None if None in values else float(statistic(values))


def _deviation(values: list[float]) -> float:
    return np.std(values, ddof=1)


def interval(values: list[float | None]) -> dict:
    """Mean, sd and the half width of Student's 95% interval of the mean, over checkpoints or seeds; None for one.

    All three are None where the score of any of them is.
    """
    from scipy import stats

    count = len(values)
    mean, sd = _unless_undefined(np.mean, values), _unless_undefined(_deviation, values) if count > 1 else None
    half = None if sd is None else float(stats.t.ppf(0.975, count - 1) * sd / np.sqrt(count))
    return {"mean": mean, "sd": sd, "ci95": half, "count": count}
