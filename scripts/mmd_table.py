"""How well the two MMD kernels distinguish a latent from its prior:  python -m scripts.mmd_table

For each kernel and dimension: the unbiased MMD of batches of --batch_size draws of q against as many of N(0, I), for
q = N(0, 1.3^2 I) and q = N(0.3, I), over --batches batches.

    separation  (mean over batches - mean for q = N(0, I)), in standard errors of that difference
    gradient    mean over batches of the Euclidean norm of the gradient by the batch of q
    pull        derivative of the MMD along the deviation (or mean) that is wrong, averaged over batches: what of the
                gradient is signal; with its standard error

Prints Markdown; writes results/mmd_table.json (--output).
"""

from __future__ import annotations

import argparse
import sys

import torch

from config import integer
from regularisers import bandwidth, mmd
from rng import Rng
from utils import versions, write_json

PROG = "python -m scripts.mmd_table"

SCALE, SHIFT = 1.3, 0.3


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def over_batches(dims: int, width: float, batches: int, size: int, scale: float, shift: float) -> dict:
    """MMD of `scale` e + `shift`, e ~ N(0, I), against N(0, I): value, gradient's norm and pull of each batch."""
    values, norms, pulls = [], [], []
    for batch in range(batches):
        rng = Rng(0, torch.arange(size), step=batch)
        standard, prior = rng.normal("q", dims), rng.normal("prior", dims)
        q = (scale * standard + shift).requires_grad_()
        value = mmd(q, prior, width)
        (gradient,) = torch.autograd.grad(value, q)
        wrong = standard if scale != 1 else torch.ones_like(standard)  # dq/dscale, dq/dshift
        values.append(value.detach())
        norms.append(gradient.norm())
        pulls.append((gradient * wrong).sum())
    return {"mmd": torch.stack(values), "norm": torch.stack(norms), "pull": torch.stack(pulls)}


def rows_of(dims: int, kernel: str, batches: int, size: int) -> list[dict]:
    width = bandwidth(dims, kernel)
    null, null_se = mean_and_error(over_batches(dims, width, batches, size, 1.0, 0.0)["mmd"])
    rows = []
    for q, scale, shift in ((f"N(0, {SCALE}^2 I)", SCALE, 0.0), (f"N({SHIFT}, I)", 1.0, SHIFT)):
        found = over_batches(dims, width, batches, size, scale, shift)
        mean, se = mean_and_error(found["mmd"])
        pull, pull_se = mean_and_error(found["pull"])
        rows.append({
            "kernel": kernel, "dims": dims, "bandwidth": width, "q": q, "mmd": mean, "mmd_se": se, "mmd_null": null,
            "mmd_null_se": null_se, "separation": (mean - null) / (se**2 + null_se**2) ** 0.5,
            "gradient": found["norm"].mean().item(), "pull": pull, "pull_se": pull_se,
        })
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=integer(1), nargs="+", default=[2, 32, 256], help="default: 2 32 256")
    parser.add_argument("--batches", type=integer(2), default=200, help="default: 200")
    parser.add_argument("--batch_size", type=integer(2), default=64, help="default: 64")
    parser.add_argument("--output", default="./results/mmd_table.json", help="file for the numbers")
    args = parser.parse_args(argv)
    rows = [row for dims in args.dims for kernel in ("scaled", "published")
            for row in rows_of(dims, kernel, args.batches, args.batch_size)]
    print("| dims | kernel | bandwidth | q | MMD | separation, SE | gradient | pull |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print("| {dims} | {kernel} | {bandwidth:g} | {q} | {mmd:.3g} | {separation:.1f} | {gradient:.2g} | "
              "{pull:.2g} ± {pull_se:.1g} |".format(**row))
    write_json(args.output, {"rows": rows, "batches": args.batches, "batch_size": args.batch_size,
                             "versions": versions()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
