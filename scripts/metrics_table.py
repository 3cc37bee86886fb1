"""Markdown tables of the metrics: source, agreement, and seconds here beside the reference's that pip can install.

Run as:  python -m scripts.metrics_table   (about six minutes on two cores; FID and KID by fid_table.py)
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import sklearn
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.svm import LinearSVC

from metrics import disentanglement as dis
from scripts import fid_table
from utils import versions, write_json

PROG = "python -m scripts.metrics_table"

SHAPES3D = (10, 10, 10, 8, 4, 15)  # values of the factors of 3D Shapes


def timed(function, *arguments, **options):
    start = time.perf_counter()
    result = function(*arguments, **options)
    return result, time.perf_counter() - start


def mixed_factors(rows: int, codes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Factors of 3D Shapes drawn at random, and codes that are a slight rotation of them with noise beside."""
    generator = np.random.default_rng(0)
    factors = np.stack([generator.integers(0, count, rows) for count in SHAPES3D], axis=1)
    clean = (factors - factors.mean(0)) / factors.std(0)
    clean = np.concatenate([clean, generator.normal(size=(rows, codes - len(SHAPES3D)))], axis=1)
    rotation = np.linalg.qr(np.eye(codes) + 0.25 * generator.normal(size=(codes, codes)))[0]
    return clean @ rotation, factors


def row(metric, source, size, reference, agreement, seconds, reference_seconds) -> dict:
    return {"metric": metric, "source": source, "size": size, "reference": reference, "agreement": agreement,
            "seconds": seconds, "reference_seconds": reference_seconds}


def dci_rows(rows: int, jobs: int) -> list[dict]:
    """Boosted trees, the same as scikit-learn's one factor after the other; and the fast predictor beside them."""
    codes, factors = mixed_factors(rows)
    half = rows // 2
    train, train_factors, test, test_factors = codes[:half], factors[:half], codes[half:], factors[half:]

    def serial():
        columns = []
        for k in range(factors.shape[1]):
            trees = GradientBoostingClassifier(random_state=0).fit(codes, factors[:, k])
            trees.score(codes, factors[:, k])
            trees.score(test, test_factors[:, k])
            columns.append(trees.feature_importances_)
        return np.stack(columns, axis=1)

    dis.dci(train[:50], train_factors[:50], test, test_factors, "fast", jobs=jobs)  # the processes are started once
    ours, seconds = timed(dis.dci, codes, factors, test, test_factors, "gbt", jobs=jobs)
    fast, fast_seconds = timed(dis.dci, codes, factors, test, test_factors, "fast", jobs=jobs)
    theirs, reference_seconds = timed(serial)
    size = f"{rows} x {codes.shape[1]}, 6 factors"
    source = "Eastwood & Williams 2018, disentanglement_lib"
    return [
        row("DCI, gbt", source, size, "scikit-learn, serial",
            f"importances within {np.abs(ours['importance'] - theirs).max():.0e}", seconds, reference_seconds),
        row("DCI, fast", source, size, "scikit-learn, serial",
            f"D {fast['disentanglement']:.3f}, gbt {dis.disentanglement(theirs):.3f}", fast_seconds, reference_seconds),
    ]


def auroc_row(rows: int, codes: int, attributes: int) -> dict:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(rows, codes)).astype(np.float32)
    values[:, ::2] = np.round(values[:, ::2], 1)  # ties
    labels = (generator.random((rows, attributes)) < generator.uniform(0.05, 0.5, attributes)).astype(np.int64)

    def pairs():
        return np.array([[roc_auc_score(label, code) for label in labels.T] for code in values.T])

    ours, seconds = timed(dis.auroc_matrix, values, labels)
    theirs, reference_seconds = timed(pairs)
    return row("TAD, its AUROCs", "Yeats et al. 2022", f"{rows} x {codes}, {attributes} attributes",
               "scikit-learn roc_auc_score", f"within {np.abs(ours - theirs).max():.0e}", seconds,
               reference_seconds)


def information_rows(rows: int) -> list[dict]:
    codes, factors = mixed_factors(rows)

    def information():
        bins = dis.bins(codes)
        return np.array([[mutual_info_score(factor, code) for factor in factors.T] for code in bins.T])

    def gap():
        second, best = np.sort(information(), axis=0)[-2:]
        return np.mean((best - second) / [mutual_info_score(factor, factor) for factor in factors.T])

    def modular():
        squared = information() ** 2
        best = squared.max(axis=1)
        return np.mean(1 - (squared.sum(axis=1) - best) / (best * (factors.shape[1] - 1)))

    found = []
    for metric, source, function, reference in (
        ("MIG", "Chen et al. 2018, disentanglement_lib (20 bins)", dis.mig, gap),
        ("modularity", "Ridgeway & Mozer 2018, disentanglement_lib", dis.modularity, modular),
    ):
        ours, seconds = timed(function, codes, factors)
        theirs, reference_seconds = timed(reference)
        found.append(row(metric, source, f"{rows} x 10, 6 factors", "scikit-learn mutual_info_score",
                         f"within {abs(ours[metric.lower()] - theirs):.0e}", seconds, reference_seconds))
    return found


def sap_row(rows: int, jobs: int) -> dict:
    codes, factors = mixed_factors(rows)
    half = rows // 2

    def serial():
        scores = np.zeros((codes.shape[1], factors.shape[1]))
        for place in np.ndindex(scores.shape):
            code, factor = codes[:, [place[0]]], factors[:, place[1]]
            model = LinearSVC(C=0.01, class_weight="balanced", dual=True, random_state=0)
            model.fit(code[:half], factor[:half])
            scores[place] = model.score(code[half:], factor[half:])
        second, best = np.sort(scores, axis=0)[-2:]
        return np.mean(best - second)

    split = codes[:half], factors[:half], codes[half:], factors[half:]
    ours, seconds = timed(dis.sap, *split, jobs=jobs)
    theirs, reference_seconds = timed(serial)
    return row("SAP", "Kumar et al. 2018, disentanglement_lib", f"{rows} x 10, 6 factors",
               "scikit-learn LinearSVC (dual), serial", f"within {abs(ours['sap'] - theirs):.0e}", seconds,
               reference_seconds)


def factor_vae_row(rows: int) -> dict:
    """Nothing that pip installs has it: the agreement is with its known values."""
    codes, factors = mixed_factors(rows)
    half = rows // 2
    perfect = dis.factor_vae(factors[:half] * 1.0, factors[:half], factors[half:] * 1.0, factors[half:])
    blind = np.random.default_rng(1).normal(size=codes.shape)
    chance = dis.factor_vae(blind[:half], factors[:half], blind[half:], factors[half:])
    _, seconds = timed(dis.factor_vae, codes[:half], factors[:half], codes[half:], factors[half:])
    agreement = f"factors {perfect['factor_vae']:.3f} (1), noise {chance['factor_vae']:.3f} (1/6)"
    return row("FactorVAE", "Kim & Mnih 2018, on a saved sample", f"{rows} x 10, 6 factors", "known values", agreement,
               seconds, None)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3200, help="rows of codes and factors (default: 3200)")
    parser.add_argument("--auroc", type=int, nargs=3, default=(8000, 256, 40), metavar=("N", "L", "K"),
                        help="rows, codes and attributes of the AUROCs (default: 8000 256 40)")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 is one a core (default: -1)")
    parser.add_argument("--output", default="./results/metrics_table.json", help="file for the numbers "
                        "(default: ./results/metrics_table.json)")
    args = parser.parse_args(argv)
    rows = [*dci_rows(args.rows, args.jobs), auroc_row(*args.auroc), *information_rows(args.rows),
            sap_row(args.rows, args.jobs), factor_vae_row(args.rows)]
    print("| metric | definition | size | agreement | seconds | reference | its seconds | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for one in rows:
        theirs = one["reference_seconds"]
        end = f"{theirs:.2f} | {one['seconds'] / theirs:.2g} |" if theirs else "| |"
        print(f"| {one['metric']} | {one['source']} | {one['size']} | {one['agreement']} | {one['seconds']:.2f} | "
              f"{one['reference']} | {end}")
    write_json(args.output, {"rows": rows, "cores": os.cpu_count(), "load": os.getloadavg()[0],
                             "versions": {**versions(), "scikit-learn": sklearn.__version__}})
    print()
    fid_table.main([])


if __name__ == "__main__":
    main()
