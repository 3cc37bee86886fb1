"""Intervals of I(x; z) where it is known:  python -m scripts.known_information

Twenty cases: factors of shapes3d and symmetric channels, z that is independent of x, codes with noise (random, of
standardised factors, of a small stochastic encoder trained here) whose I(x; z) is exact by all 480,000 codes, and the
pairs of blobs and rectangles. Prints a Markdown table of truth, interval and CPU seconds, and how often the interval
holds the truth; writes results/known_information.json (--output).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from config import integer
from dataset import pairs, registry, shapes3d
from information.interval import Bracket, Normals, Rows, Symbols, bracket, exact
from information.likelihood import Mean
from modules import mlp
from rng import Rng
from utils import markdown_table, versions, write_json

ROWS, FIT, CHOOSE = 5_000, 20_000, 2_000  # of shapes3d
PAIRS = 10_000  # of blobs and rectangles, six tenths of them fitted to
EXACT_ROWS = 1_000  # that a truth is an average over, against all codes


class Case(NamedTuple):
    name: str
    group: str  # 'shapes3d' or 'pairs'
    truth: Mean
    found: Bracket
    seconds: float  # of the interval, CPU


def measured(name: str, group: str, truth: Mean, parts: list[Rows], **options) -> Case:
    start = time.process_time()
    found = bracket(*parts, **options)
    return Case(name, group, truth, found, time.process_time() - start)


def drawn(count: int) -> list[np.ndarray]:
    """Rows of shapes3d to measure, to fit to and to choose on."""
    order = np.random.default_rng(0).permutation(shapes3d.COUNT)
    return np.split(order[:count], [ROWS, ROWS + FIT])


def factor_cases() -> Iterator[Case]:
    """z is some factors of the picture, sent through symmetric channels."""
    for names, error, independent in (
        (("floor hue",), 0.0, False), (("shape",), 0.0, False), (("orientation",), 0.0, False),
        (("floor hue", "shape"), 0.0, False), (shapes3d.FACTORS, 0.0, False), (("floor hue",), 0.3, False),
        (("floor hue", "shape"), 0.1, False), (("floor hue",), 0.0, True),
    ):
        columns = [shapes3d.FACTORS.index(name) for name in names]
        sizes = tuple(shapes3d.FACTOR_SIZES[k] for k in columns)
        parts = []
        for rows in drawn(ROWS + FIT + CHOOSE)[:2]:
            sent = shapes3d.factors(rows)[:, columns]
            parts.append(Symbols.draw(torch.from_numpy(sent), sizes, error, independent, seed=len(parts)))
        label = "all six factors" if len(names) == 6 else ", ".join(names)
        label += f", error {error:g}" if error else ""
        yield measured(f"independent {label}" if independent else label, "shapes3d", Mean(parts[0].capacity, 0.0),
                       parts)


def code_cases(steps: int) -> Iterator[Case]:
    """z is a code of the picture with noise."""
    pixels = shapes3d.render(np.arange(shapes3d.COUNT), 8).reshape(shapes3d.COUNT, -1)
    x = torch.from_numpy(pixels).float() / 127.5 - 1
    noise = Rng(0, torch.arange(192))
    hidden = torch.tanh((x - x.mean(0)) / x.std(0).clamp(min=0.05) @ noise.normal("first", 64) * 0.2)
    code = hidden @ Rng(0, torch.arange(64)).normal("second", 32)
    for tau in (1.0, 2.0, 4.0):
        yield code_case(f"random code of 32, tau {tau:g}", code / code.std(0), 2 * math.log(tau))
    factors = torch.from_numpy(shapes3d.factors(np.arange(shapes3d.COUNT))).double()
    for tau in (0.5, 1.0):
        yield code_case(f"six standardised factors, tau {tau:g}", (factors - factors.mean(0)) / factors.std(0),
                        2 * math.log(tau))
    mean, logvar = stochastic_encoder(x, steps)
    yield code_case("stochastic encoder of 8", mean, logvar)


def code_case(name: str, mean: Tensor, logvar: Tensor | float) -> Case:
    """mean [COUNT, d] of all pictures; logvar of the same shape, or one number."""
    mean = mean.double()
    logvar = torch.as_tensor(logvar).double().expand_as(mean)
    parts = [Normals.draw(mean[rows], logvar[rows], seed) for seed, rows in enumerate(drawn(ROWS + FIT + CHOOSE))]
    truth = exact(parts[0].rows(slice(EXACT_ROWS)), Normals(mean, logvar, mean))
    return measured(name, "shapes3d", truth, parts)


def stochastic_encoder(x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(mean, log-variance) [COUNT, 8] of a small VAE's encoder after some steps of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = mlp(192, 128, 16), mlp(8, 128, 192)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    for step in range(steps):
        rng = Rng(0, torch.arange(256), step)
        batch = x[(rng.uniform("row").double() * len(x)).long()]
        mean, logvar = encoder(batch).chunk(2, 1)
        z = mean + (logvar / 2).exp() * rng.normal("z", 8)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
        loss = ((decoder(z) - batch).square().sum(1) / 0.2 + kl).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 10.0)
        optimizer.step()
    with torch.no_grad():
        codes = torch.cat([encoder(part) for part in x.split(20_000)])
    return codes[:, :8].double(), codes[:, 8:].clamp(-15, 10).double()


def pair_cases() -> Iterator[Case]:
    """z is the second picture of a pair: its parameters t, of which q(t | x) is known."""
    for name, wanted in (("blobs", (0.5, 3.0, 8.0)), ("rectangles", (1.0, 5.0, 10.0))):
        spec = registry.SPECS[name]
        for nats in wanted:
            channel = pairs.second(spec, np.arange(PAIRS), nats)
            rows = Normals(*(torch.from_numpy(part).double() for part in channel.normal))
            fit, choose = rows.rows(slice(PAIRS * 6 // 10)), rows.rows(slice(PAIRS * 6 // 10, PAIRS * 7 // 10))
            yield measured(f"{name}, {nats:g} nats", "pairs", Mean(nats, 0.0), [rows, fit, choose],
                           tested=rows.rows(slice(PAIRS * 7 // 10, None)))


def row_of(case: Case) -> dict:
    low, high = case.found.ends
    truth, slack = case.truth.mean, 2 * case.truth.se + 1e-9  # what is uncertain in the truth is no miss
    return {
        "case": case.name, "group": case.group, "truth": truth, "truth_se": case.truth.se, "low": low, "high": high,
        "holds": low - slack <= truth <= high + slack, "midpoint_error": abs((low + high) / 2 - truth),
        "narrow": truth < case.found.log_n - 3, "log_n": case.found.log_n, "upper_by": case.found.upper_by,
        "components": case.found.components, "cpu_seconds": case.seconds,
    }


def table(rows: list[dict]) -> str:
    """The cases, and below what they come to."""
    head = ["x, z", "truth", "interval", "width", "upper end by", "log N", "CPU s"]
    lines = [[row["case"], f"{row['truth']:.3f}" + (f" ± {row['truth_se']:.3f}" if row["truth_se"] else ""),
              f"{row['low']:.3f} .. {row['high']:.3f}" + ("" if row["holds"] else " MISSED"),
              f"{row['high'] - row['low']:.2f}", row["upper_by"], f"{row['log_n']:.2f}", f"{row['cpu_seconds']:.1f}"]
             for row in rows]
    held = sum(row["holds"] for row in rows)
    widest = max((row["high"] - row["low"] for row in rows if row["narrow"]), default=0.0)
    errors = {group: np.mean([row["midpoint_error"] for row in rows if row["group"] == group])
              for group in dict.fromkeys(row["group"] for row in rows)}
    means = ", ".join(f"{error:.3f} ({group})" for group, error in errors.items())
    return (f"{markdown_table(head, lines)}\n\n{held} of {len(rows)} intervals hold the truth. Widest where the truth "
            f"is below log N - 3: {widest:.2f} nats. Mean absolute error of the midpoint: {means}.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=integer(1), default=500,
                        help="training of the stochastic encoder (default: 500)")
    parser.add_argument("--output", default="./results/known_information.json", help="file for the numbers")
    args = parser.parse_args(argv)
    rows = []
    for cases in (factor_cases(), code_cases(args.steps), pair_cases()):
        for case in cases:
            rows.append(row_of(case))
            print(f"{case.name}: {case.found.text()}, truth {case.truth.mean:.3f}", file=sys.stderr)
    print(table(rows))
    write_json(args.output, {"rows": rows, "versions": versions()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
