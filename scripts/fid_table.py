"""Seconds and agreement of metrics/fid.py beside the implementations that pip can install:  python -m scripts.fid_table

Prints a Markdown table and writes its numbers to ./results/fid_table.json (--output). Covariances are those of
rectified Gaussian features whose spectrum falls over three decades, as Inception's does; set OMP_NUM_THREADS to compare
at a number of threads. pytorch-fid 0.3.0 does not run on SciPy 1.18 and later, which is then said in its place.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

import numpy as np
import scipy
from pytorch_fid.fid_score import calculate_frechet_distance

from config import integer
from metrics import distances
from utils import versions, write_json

PROG = "python -m scripts.fid_table"


def features(count: int, dims: int, seed: int) -> np.ndarray:
    """[count, dims] non-negative, correlated, with a spectrum over three decades."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((dims, dims)) / dims**0.5
    hidden = generator.standard_normal((count, dims)) * np.exp(-np.linspace(0, 7, dims))
    return np.maximum(hidden @ mixing + 0.01 * generator.standard_normal((count, dims)) + 0.05 * seed, 0)


def timed(function, *arguments, repeats: int = 1):
    """The result, and the least seconds of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def frechet_row(name: str, count: int, dims: int) -> dict:
    sides = [features(count, dims, seed) for seed in (0, 1)]
    statistics = [value for side in sides for value in (side.mean(axis=0), np.cov(side, rowvar=False))]
    ours, seconds = timed(distances.frechet_distance, *statistics, repeats=3)
    row = {"metric": name, "reference": "pytorch-fid", "value": ours, "seconds": seconds}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, row["reference_seconds"] = timed(calculate_frechet_distance, *statistics)
    except TypeError:
        return {**row, "note": f"pytorch-fid does not run on SciPy {scipy.__version__}"}
    return {**row, "relative_difference": abs(ours - theirs) / theirs}


def kernel_row(dims: int) -> dict:
    """KID beside scikit-learn's polynomial kernel."""
    from sklearn.metrics.pairwise import polynomial_kernel

    x, y = features(1000, dims, 0), features(1000, dims, 1)

    def reference():
        xx, yy, xy = (polynomial_kernel(a, b, degree=3, gamma=1 / dims, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
        off = ~np.eye(1000, dtype=bool)
        return xx[off].mean() + yy[off].mean() - 2 * xy.mean()

    ours, seconds = timed(lambda: distances.kernel_distance(x, y, blocks=1).value)
    theirs, reference_seconds = timed(reference)
    return {
        "metric": "KID of 1,000 images", "reference": "scikit-learn's kernel", "value": ours, "seconds": seconds,
        "reference_seconds": reference_seconds, "relative_difference": abs(ours - theirs) / abs(theirs),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dims", type=integer(2), default=2048, help="dimensions of the features")
    parser.add_argument("--output", default="./results/fid_table.json", help="file for the numbers")
    args = parser.parse_args(argv)
    rows = [
        frechet_row("Frechet distance, full rank", 5 * args.dims // 2, args.dims),
        frechet_row("Frechet distance, fewer samples than dimensions", args.dims // 2, args.dims),
        kernel_row(args.dims),
    ]
    print("| metric | value | seconds | reference | its seconds | times as fast | relative difference |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        ours = f"| {row['metric']}, {args.dims} dims | {row['value']:.6g} | {row['seconds']:.2f} | {row['reference']} |"
        if "note" in row:
            print(ours, f"{row['note']} | | |")
        else:
            ratio = row["reference_seconds"] / row["seconds"]
            print(ours, f"{row['reference_seconds']:.2f} | {ratio:.1f} | {row['relative_difference']:.1e} |")
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    write_json(args.output, {"rows": rows, "threads": threads, "versions": {**versions(), "scipy": scipy.__version__}})


if __name__ == "__main__":
    main()
