"""The table that quickstart.sh ends with, read from the result files below the current folder:

    python -m scripts.quickstart_table
"""

from __future__ import annotations

import sys
from pathlib import Path

from commandline import Parser
from plots import read_log
from utils import exit_status, read_json

PROG = "python -m scripts.quickstart_table"
EXPERIMENT = "digits_32d_0.01mmd_0.1zdrop"
INPUTS = {"z": "z (32 numbers)", "pca": "32 principal components", "pixels": "raw pixels (64)",
          "untrained": "an untrained z"}


def read(*parts: str) -> dict:
    return read_json(Path(*parts))


def _run(argv: list[str]) -> None:
    Parser(prog=PROG, description=__doc__.split(":\n\n")[0]).parse_args(argv)
    accuracy = read("results", EXPERIMENT, "classification.json")["inputs"]
    quality = read("results", EXPERIMENT, "latent_quality.json")
    last = read_log(Path("logs", EXPERIMENT, "metrics.jsonl"))[-1]
    rows = [
        ("epochs (steps)", f"{last['epoch']} ({last['step']})"),
        ("noise error, held-out", f"{last['val']['denoise']:.4f} +- {last['val_se']['denoise']:.4f}"),
        *((f"digit from {words}", f"{accuracy[name]['mean']:.1%} +- {accuracy[name]['se']:.1%}")
          for name, words in INPUTS.items()),
        ("reconstruction from z, x_T", f"{quality['inferred']['psnr']:.1f} dB"),
        ("reconstruction from z alone", f"{quality['random']['psnr']:.1f} dB"),
    ]
    print()
    for name, value in rows:
        print(f"{name:35} {value}")
    print("(accuracies: logistic regression, five folds of images never seen in training)\n")
    pictures = {
        "training curve": "train/curve.png",
        "samples": "eval/grid.png",
        "reconstructions": "latent_quality/reconstructions.png",
        "latents": "plot_latent/plot_latent.png",
    }
    for name, path in pictures.items():
        print(f"{name:35} {Path('imgs', EXPERIMENT, path).resolve()}")


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status."""
    return exit_status(PROG, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
