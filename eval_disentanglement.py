"""How well single latents stand for single factors:  python eval_disentanglement.py --model diff --dataset celeba ...

With the experiment's flags it scores models/EXP/latents.npz, which run.py --mode save_latent wrote; with --codes any
files of that form (all_a [N, L], all_attr [N, K]), several checkpoints or seeds in one table with intervals.
DCI is for classes and factors, TAD for attributes (labels that are 0 or 1). A class label is one factor, and a score
that compares factors with each other is then undefined: null in the file. Beside the scores stand bounds of
I(z_d; label) for every code and label, in nats: of codes without noise of their own, at the first --tau.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import commandline
import config as configuration
from dataset import registry
from metrics import disentanglement
from metrics.disentanglement import METRICS
from utils import (
    CommandError,
    check_writable,
    codes_origin,
    exit_status,
    file_hash,
    read_json,
    read_npz,
    refuse_other_inputs,
    some_rows,
    versions,
    write_json,
)

PROG = "eval_disentanglement.py"
UNDEFINED = "undefined (one factor)"
SHOWN = 40  # codes of a heat map


@dataclass(frozen=True)
class Latents:
    """A file of codes with what is known of each row."""

    name: str
    path: Path
    codes: np.ndarray  # [N, L] float
    logvar: np.ndarray | None  # [N, L] of q(z|x), where the encoder is stochastic
    labels: np.ndarray  # [N, K] int, each column's values numbered from 0 in their order
    label_names: list[str]  # K
    split: str
    origin: dict  # the hash of the checkpoint that encoded them, and its config; None where the file does not say

    @property
    def are_attributes(self) -> bool:
        return int(self.labels.max()) <= 1


def _flags(group) -> None:
    offered = "; ".join(f"{name}: {row.returns}" for name, row in METRICS.items())
    group.add_argument("--metrics", nargs="+", choices=tuple(METRICS), metavar="NAME",
                       help=f"which scores. {offered} (default: --disent_metric where given, else tad for attributes "
                       "and dci for classes and factors)")
    group.add_argument("--predictor", choices=("gbt", "forest", "lasso", "fast"), default="gbt",
                       help="what DCI takes importances from: boosted trees (the reference), random forest, lasso, or "
                       "a few seconds' randomised trees (default: gbt)")
    group.add_argument("--folds", type=configuration.integer(2, 100), default=5, help="folds (default: 5)")
    group.add_argument("--rows", type=configuration.integer(4), default=10_000,
                       help="at most so many rows of a file, drawn at random (default: 10000)")
    group.add_argument("--jobs", type=int, default=-1, help="processes; -1 is one a core (default: -1)")
    group.add_argument("--output", metavar="DIR", help="folder of disentanglement.json and the heat maps (default: "
                       "results/EXP, or results/codes-FILE with --codes)")


def read_latents(path: Path, rows: int, seed: int) -> Latents:
    """Read a file that save_latent wrote, or a published one. Raises CommandError for anything else."""
    arrays = read_npz(path, "all_a", "all_attr")
    codes, labels = arrays["all_a"], arrays["all_attr"]
    labels = labels[:, None] if labels.ndim == 1 else labels
    if codes.ndim != 2 or codes.dtype.kind not in "fiu" or labels.dtype.kind not in "fiub" or labels.ndim != 2:
        raise CommandError(f"{path}: all_a and all_attr must be tables of numbers [N, L] and [N, K]")
    if labels.shape[1] == 0:
        raise CommandError(f"{path} has no labels: this data set has none to compare codes with")
    if len(labels) != len(codes) or len(codes) == 0 or not np.isfinite(labels).all():
        raise CommandError(f"{path}: {len(codes)} rows of codes and {len(labels)} of labels must match and be finite")
    names = [str(name) for name in arrays.get("attr_names", ())]
    if len(names) != labels.shape[1]:
        names = [f"label {k}" for k in range(labels.shape[1])] if labels.shape[1] > 1 else ["class"]
    chosen = some_rows(len(codes), rows, seed)
    numbered = np.stack([np.unique(column, return_inverse=True)[1] for column in labels[chosen].T], axis=1)
    split = str(arrays["split"]) if "split" in arrays else "unknown"
    name = path.parent.name if path.stem == "latents" else path.stem
    logvar = arrays.get("all_logvar")
    if logvar is not None and (logvar.shape != codes.shape or not np.isfinite(logvar).all()):
        raise CommandError(f"{path}: all_logvar must be a table like all_a, of finite numbers")
    return Latents(name, path, codes[chosen], None if logvar is None else logvar[chosen], numbered, names, split,
                   codes_origin(arrays))


def information_matrix(latents: Latents, tau: float, seed: int) -> dict:
    """Bounds of I(z_d; label_k), [L][K] each: in nats, with noise of `tau` deviations where the codes have none."""
    import torch

    from information.entries import ENTRY_ROWS, with_labels
    from information.interval import Normals

    codes = torch.from_numpy(latents.codes).double()
    if latents.logvar is None:
        logvar = (2 * (np.log(tau) + codes.std(0).clamp(min=1e-6).log())).expand_as(codes)
    else:
        logvar, tau = torch.from_numpy(latents.logvar).double(), None
    rows = some_rows(len(codes), ENTRY_ROWS, seed)  # a file may lie in order of its labels
    found = with_labels(Normals.draw(codes[rows], logvar[rows], seed), latents.labels[rows])
    return {"tau": tau, "rows": len(rows), **found}


def intervals(found: dict) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval of every I(z_d; label_k), [L, K] twice: information is never negative."""
    return np.maximum(0, found["lower"] - 2 * found["lower_se"]), found["upper"] + 2 * found["upper_se"]


def information_lines(record: dict) -> list[str]:
    """The codes that say most about each label, with their intervals."""
    found = record["information_nats"]
    noise = "" if found["tau"] is None else f" at tau {found['tau']:g}"
    low, high = intervals(found)
    lines = [f"  I(z_d; label){noise}, nats from .. to, of the two codes that say most:"]
    for k, label in enumerate(record["label_names"]):
        best = np.argsort(-(low + high)[:, k], kind="stable")[:2]
        lines.append(f"  {label:22s} " + ", ".join(f"z{d} {low[d, k]:.2f} .. {high[d, k]:.2f}" for d in best))
    return lines


def pictures(latents: Latents, matrices: dict, folder: Path, number: str, form: str = "png") -> dict[Path, tuple]:
    """A heat map of each matrix [L, K], {metric: {kind: matrix}}, of file `number`: the codes with the largest entries.

    -> {file: what plots.heat_map takes}
    """
    shape = latents.codes.shape[1], latents.labels.shape[1]
    drawn = [(metric, kind, matrix) for metric, named in matrices.items() for kind, matrix in named.items()
             if matrix.shape == shape]
    found = {}
    for metric, kind, matrix in drawn:
        values = np.abs(2 * matrix - 1) if kind == "auroc" else matrix
        strongest = np.sort(np.argsort(-values.max(axis=1), kind="stable")[:SHOWN])
        title = "|2 AUROC - 1| of each code" if kind == "auroc" else f"{kind} of each code ({metric.upper()})"
        if metric == "interval":
            title = "I(z_d; label), middle of the interval, nats"
        if len(values) > SHOWN:
            title += f", the {SHOWN} strongest of {len(values)}"
        alone = sum(kind == other for _, other, _ in drawn) == 1
        path = folder / f"{kind if alone else f'{metric}-{kind}'}-{number}.{form}"
        found[path] = values[strongest], [f"z{code}" for code in strongest], latents.label_names, title
    return found


def table(records: list[dict], summary: dict) -> str:
    """Each score of each file, mean +- standard error; below, mean +- half the 95% interval over files."""
    lines = []
    for record in records:
        lines.append(f"{record['name']}: {record['rows']} rows of split {record['split']}, {record['codes']} codes, "
                     f"{record['labels']} labels; mean over folds +- standard error")
        lines += [f"  {name:22s} " + (UNDEFINED if mean is None else f"{mean:8.4f} +- {record['se'][name]:.4f}")
                  for name, mean in record["mean"].items()]
        lines += information_lines(record)
    if summary:
        lines.append(f"over {len(records)} files: mean +- half width of the 95% t-interval (sd)")
        lines += [f"  {name:22s} " + (UNDEFINED if s["mean"] is None
                                      else f"{s['mean']:8.4f} +- {s['ci95']:.4f} ({s['sd']:.4f})")
                  for name, s in summary.items()]
    return "\n".join(lines)


def refuse_stale_codes(command: configuration.Command, path: Path, known: str | None) -> None:
    """Raise CommandError where an experiment's codes are not of the checkpoint that the flags mean."""
    from experiment import meant, refuse_stale

    checkpoint = meant(command)
    if checkpoint is not None:
        refuse_stale(known, path, checkpoint, "run run.py --mode save_latent")


def _choose_metrics(files: list[Latents], own: argparse.Namespace, command: configuration.Command) -> tuple[str, ...]:
    if own.metrics:
        return tuple(own.metrics)
    if "disent_metric" in command.by_hand:
        return (command.config.disent_metric,)
    return ("tad",) if all(latents.are_attributes for latents in files) else ("dci",)


def _files(command: configuration.Command, own: argparse.Namespace) -> list[Latents]:
    """The codes that a command line means: files of --codes, or the experiment's own."""
    cfg = command.config
    experiment = configuration.folder(cfg, "models") / "latents.npz"
    if not cfg.codes and not experiment.is_file():
        raise CommandError(f"{experiment} does not exist: make it with run.py --mode save_latent and the same flags")
    files = [read_latents(Path(path), own.rows, cfg.r_seed) for path in cfg.codes or [experiment]]
    if not cfg.codes:
        refuse_stale_codes(command, experiment, files[0].origin["checkpoint_hash"])
    return files


def _result(command: configuration.Command, own: argparse.Namespace, files: list[Latents]) -> Path:
    """The file to write, one for each split. Raises CommandError where it cannot be, or holds other codes' numbers."""
    cfg = command.config
    default = Path(cfg.result_folder, f"codes-{files[0].name}") if cfg.codes else configuration.folder(cfg, "results")
    part = f"_{files[0].split}" if not cfg.codes and files[0].split in ("train", "val") else ""
    result = Path(own.output or default) / f"disentanglement{part}.json"
    check_writable(result.parent)
    if result.exists():
        before = [one.get("path") for one in read_json(result).get("files", ())]
        refuse_other_inputs(result, before, [Path(latents.path) for latents in files])
    return result


def _measured(latents: Latents, metrics: tuple[str, ...], cfg: configuration.Config,
              own: argparse.Namespace) -> tuple[dict, dict]:
    """What stands in the result file of one file of codes; and its matrices, to draw."""
    scores = disentanglement.evaluate(latents.codes, latents.labels, metrics, own.predictor, own.folds, cfg.r_seed,
                                      own.jobs)
    found = information_matrix(latents, cfg.tau[0], cfg.r_seed)
    record = {"name": latents.name, "path": latents.path, "hash": file_hash(latents.path), **latents.origin,
              "split": latents.split, "rows": len(latents.codes), "codes": latents.codes.shape[1],
              "labels": latents.labels.shape[1], "label_names": latents.label_names, **scores,
              "information_nats": found}
    return record, {**scores["matrices"], "interval": {"information": sum(intervals(found)) / 2}}


def _run(argv: list[str]) -> None:
    if commandline.value_of(argv, "--from"):
        from experiment import expand_from

        argv = expand_from(argv)
    command, own = commandline.parse(argv, PROG, registry.SPECS, extra=_flags)
    cfg, files = command.config, _files(command, own)
    metrics = _choose_metrics(files, own, command)
    for latents in files:
        disentanglement.check(latents.codes, latents.labels, own.folds, str(latents.path))
        for name in metrics:
            if METRICS[name].labels == "attributes" and not latents.are_attributes:
                raise CommandError(f"{latents.path}: {name} needs labels that are 0 or 1; use --metrics dci")
    result = _result(command, own, files)

    import sklearn

    records, drawn = [], {}
    for number, latents in enumerate(files):
        record, matrices = _measured(latents, metrics, cfg, own)
        place = f"{number}{result.stem.removeprefix('disentanglement')}"
        own_pictures = pictures(latents, matrices, result.parent, place, cfg.format)
        drawn |= own_pictures
        records.append({**record, "pictures": list(own_pictures)})
    names = records[0]["mean"] if len(records) > 1 else ()
    summary = {name: disentanglement.interval([record["mean"][name] for record in records]) for name in names}
    write_json(result, {
        "metrics": metrics, "predictor": own.predictor, "fold_count": own.folds, "seed": cfg.r_seed,
        "files": records, "summary": summary, "config": None if cfg.codes else files[0].origin["config"],
        "call": configuration.call_of(command, own),
        "versions": {**versions(), "scikit-learn": sklearn.__version__},
    })
    print(table(records, summary))
    print(f"-> {result}", flush=True)

    import plots

    for path, (matrix, rows, columns, title) in drawn.items():
        plots.heat_map(matrix, rows, columns, title, path)


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status: 0, or 2 after one line on stderr."""
    return exit_status(PROG, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
