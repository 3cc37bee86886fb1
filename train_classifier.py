"""What a classifier reads from an experiment's latents:  python train_classifier.py --model diff --dataset celeba ...

Scores z (models/EXP/latents.npz, of run.py --mode save_latent) and, where it exists, x_T
(models/EXP/latent_quality.npz, of --mode latent_quality): accuracy for classes and factors, AUROC for attributes.
Beside z, from the same images, what needs no training: their pixels, their --a_dim principal components, and z of the
same encoder with fresh weights. The split is save_latent's: test by default, to results/EXP/classification.json;
--split train, with --rows as many as there are, is the published protocol (80 % of the training images' codes to fit,
20 % to score), to classification_train.json.

With --images it trains a small image classifier instead, models/DATASET_classifier.pth, whose features serve
calc_fid.py --extractor classifier.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import commandline
import config as configuration
from dataset import registry
from utils import (
    CommandError,
    check_writable,
    codes_origin,
    exit_status,
    read_json,
    read_npz,
    refuse_other_inputs,
    save_checkpoint,
    some_rows,
    versions,
    write_json,
)

PROG = "train_classifier.py"
BASELINES = ("pixels", "pca", "untrained")
INPUTS = ("z", "x_T", *BASELINES)
# result file of each split
RESULT = {"test": "classification.json", "val": "classification_val.json", "train": "classification_train.json"}


def _flags(group) -> None:
    group.add_argument("--images", action="store_true",
                       help="train the image classifier of the data set, for --epochs epochs (default: off)")
    group.add_argument("--classifier", choices=("logistic", "mlp"), default="logistic",
                       help="logistic regression, or an MLP with class weights (default: logistic)")
    group.add_argument("--inputs", nargs="+", choices=INPUTS, metavar="NAME",
                       help=f"what is classified: {', '.join(INPUTS)} (default: all; x_T where it was saved)")
    group.add_argument("--folds", type=configuration.integer(2, 100), default=5, help="folds (default: 5)")
    group.add_argument("--rows", type=configuration.integer(4), default=10_000,
                       help="at most so many images, drawn at random (default: 10000)")
    group.add_argument("--width", type=configuration.integer(1, 1024), default=32,
                       help="channels of the image classifier's first layer, with --images (default: 32)")
    group.add_argument("--jobs", type=int, default=-1, help="processes; -1 is one a core (default: -1)")


def _numbered(labels: np.ndarray, path: Path) -> np.ndarray:
    """Labels [N] or [N, K] -> [N, K] int, each column's values numbered from 0 in their order."""
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.ndim != 2 or labels.shape[1] == 0 or labels.dtype.kind not in "fiub":
        raise CommandError(f"{path} has no labels: this data set has none to classify")
    if not np.isfinite(labels).all():
        raise CommandError(f"{path} has labels that are NaN or infinite: leave their rows out")
    return np.stack([np.unique(column, return_inverse=True)[1] for column in labels.T], axis=1)


def _read(path: Path, values: str, labels: str, made_by: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """(inputs [N, D] float32, labels [N, K], all arrays) of a saved file."""
    if not path.is_file():
        raise CommandError(f"{path} does not exist: make it with run.py --mode {made_by} and the same flags")
    arrays = read_npz(path, values, labels)
    if len(arrays[values]) != len(arrays[labels]) or arrays[values].dtype.kind not in "fiu":
        raise CommandError(f"{path}: {values} and {labels} must be numbers, a row an image")
    return arrays[values].reshape(len(arrays[values]), -1), _numbered(arrays[labels], path), arrays


def _names(arrays: dict, count: int) -> list[str]:
    names = [str(name) for name in arrays.get("attr_names", ())]
    if len(names) == count:
        return names
    return ["class"] if count == 1 else [f"label {k}" for k in range(count)]


class Task(NamedTuple):
    """What is to be classified, on which rows of which split.

    inputs    {name: (inputs [N, D], labels [N, K])}
    names     of the K labels
    protocol  the split and the rows, in words
    result    the file for the scores
    origin    of the codes: `utils.codes_origin`
    """

    inputs: dict[str, tuple[np.ndarray, np.ndarray]]
    names: list[str]
    split: str
    protocol: str
    result: Path
    origin: dict


def _gather(command: configuration.Command, own) -> Task:
    """Raises CommandError where codes or x_T are not of the checkpoint that the flags mean."""
    from experiment import meant, refuse_stale

    cfg, checkpoint = command.config, meant(command)
    folder = configuration.folder(cfg, "models")
    quality = folder / "latent_quality.npz"
    wanted = own.inputs or [name for name in INPUTS if name != "x_T" or quality.is_file()]
    z, labels, arrays = _read(folder / "latents.npz", "all_a", "all_attr", "save_latent")
    if checkpoint is not None:
        refuse_stale(codes_origin(arrays)["checkpoint_hash"], folder / "latents.npz", checkpoint,
                     "run run.py --mode save_latent")
    rows = some_rows(len(z), own.rows, cfg.r_seed)
    split = str(arrays["split"]) if "split" in arrays else "train"
    if split not in RESULT:
        raise CommandError(f"{folder / 'latents.npz'}: its split is none of {', '.join(RESULT)}")
    result = configuration.folder(cfg, "results") / RESULT[split]
    if result.exists():
        refuse_other_inputs(result, [read_json(result).get("codes")], [folder / "latents.npz"])
    found = {}
    if "z" in wanted:
        found["z"] = z[rows], labels[rows]
    if "x_T" in wanted:
        x_T, x_T_labels, others = _read(quality, "x_T", "labels", "latent_quality")
        if checkpoint is not None:
            refuse_stale(codes_origin(others)["checkpoint_hash"], quality, checkpoint,
                         "run run.py --mode latent_quality")
        rest = some_rows(len(x_T), own.rows, cfg.r_seed)
        if unfit := _unfit(str(others["split"]) if "split" in others else split, split, len(rest), own.folds):
            cure = f"{quality} {unfit}: run run.py --mode latent_quality again, or leave x_T out of --inputs"
            if own.inputs:
                raise CommandError(cure)
            print(f"note: x_T is left out: {cure}", file=sys.stderr)
        else:
            found["x_T"] = x_T[rest], x_T_labels[rest]
    if not set(BASELINES).isdisjoint(wanted):
        images = _images(cfg, split, rows, arrays["all_attr"], folder / "latents.npz")
        made = {"pixels": lambda: images.reshape(len(images), -1), "pca": lambda: images.reshape(len(images), -1),
                "untrained": lambda: _untrained(cfg, images)}
        found |= {name: (made[name](), labels[rows]) for name in BASELINES if name in wanted}
    protocol = f"{len(rows):,} of {len(z):,} images of the {split} split"
    return Task(found, _names(arrays, labels.shape[1]), split, protocol, result, codes_origin(arrays))


def _unfit(of: str, split: str, count: int, folds: int) -> str:
    """Why x_T of a split is not scored beside the codes of another, or not at all; '' where it is."""
    if of != split:
        return f"is of the {of} split, and latents.npz of the {split} split"
    return f"has {count} rows, too few for {folds} folds" if count < 2 * folds else ""


def _images(cfg: configuration.Config, split: str, rows: np.ndarray, labels: np.ndarray, path: Path) -> np.ndarray:
    """Rows of a split, float32 [N,C,H,W]. Raises CommandError where they are not the images of `labels`."""
    dataset = registry.load(cfg.dataset, split, root=cfg.data_dir, size=cfg.input_size, channels=cfg.input_channels)
    own = dataset.labels
    if own is None or len(own) < len(labels) or not np.array_equal(own[: len(labels)].reshape(labels.shape), labels):
        raise CommandError(f"{path}: its labels are not those of the {split} split in --data_dir {cfg.data_dir}")
    parts = np.array_split(rows, -(-len(rows) // 512))
    return np.concatenate([dataset.batch(part).numpy() for part in parts])


def _untrained(cfg: configuration.Config, images: np.ndarray) -> np.ndarray:
    """z of images [N,C,H,W] from the experiment's encoder with fresh weights, drawn from --r_seed. [N, a_dim]"""
    import torch

    from diffusion import Gaussian
    from experiment import build_fresh, pick_device

    device, shape = pick_device(cfg.device), images.shape[1:]
    entries = int(np.prod(shape))
    unit = Gaussian(torch.zeros(entries).double(), torch.ones(entries).double(), None)
    model = build_fresh(cfg, shape, unit, device).eval()
    with torch.no_grad():
        return np.concatenate([model.posterior(torch.from_numpy(part).to(device))[0].cpu().numpy()
                               for part in np.array_split(images, -(-len(images) // 256))])


def differences(results: dict[str, dict]) -> dict[str, dict]:
    """z less each baseline, paired over the folds: {"z - pca": {"mean", "se", "folds"}}."""
    from metrics import classification

    return {f"z - {name}": classification.difference(results["z"], results[name])
            for name in BASELINES if name in results and "z" in results}


def label_score(one: dict) -> str:
    """Of one label; where not every fold could score it, that it is not in the average over labels."""
    scored = len(one["folds"]) - one["folds"].count(None)
    if not scored:
        return "constant"
    left_out = f"  (scored in {scored} of {len(one['folds'])} folds: not in the average)"
    return f"{one['mean']:.4f}" + (left_out if None in one["folds"] else "")


def table(record: dict) -> str:
    """A row an input, with what z is above it; where there are several labels a row a label."""
    results = record["inputs"]
    first = next(iter(results.values()))
    folds = len(first["folds"])
    lines = [f"{first['classifier']}, {first['measure']}: {record['protocol']}, mean +- standard error over {folds} "
             f"folds of {1 - 1 / folds:.0%} to fit and {1 / folds:.0%} to score"]
    for name, result in results.items():
        axes = f", {result['axes']} principal axes" if result["axes"] < result["dimensions"] else ""
        used = f" ({result['participation_ratio']:.1f} in use)" if "participation_ratio" in result else ""
        above = record["differences"].get(f"z - {name}")
        lines.append(f"{name:9s} {result['mean']:.4f} +- {result['se']:.4f}  ({result['rows']} rows, "
                     f"{result['dimensions']} dimensions{used}{axes}; chance {result['chance']:.3f})"
                     + (f"  z - {name} {above['mean']:+.4f} +- {above['se']:.4f}" if above else ""))
        if len(result["per_label"]) > 1:
            lines += [f"    {one['name']:24s} {label_score(one)}" for one in result["per_label"]]
    return "\n".join(lines)


def _score(command: configuration.Command, own) -> None:
    cfg = command.config
    check_writable(configuration.folder(cfg, "results"))
    task = _gather(command, own)

    import sklearn

    from experiment import pick_device
    from metrics import classification

    device = pick_device(cfg.device)
    results = {
        name: classification.evaluate(inputs, labels, task.names, own.classifier, own.folds, cfg.r_seed, own.jobs,
                                      device=device, components=cfg.a_dim if name == "pca" else None)
        for name, (inputs, labels) in task.inputs.items()
    }
    if "z" in results:
        results["z"]["participation_ratio"] = classification.participation_ratio(task.inputs["z"][0])
    record = {"inputs": results, "differences": differences(results), "protocol": task.protocol, "split": task.split,
              "seed": cfg.r_seed, "codes": str(configuration.folder(cfg, "models") / "latents.npz"), **task.origin,
              "call": configuration.call_of(command, own),
              "versions": {**versions(), "scikit-learn": sklearn.__version__}}
    write_json(task.result, record)
    print(f"{table(record)}\n-> {task.result}")


def _train_images(command: configuration.Command, own) -> None:
    cfg = command.config
    path = Path(cfg.model_folder) / f"{cfg.dataset}_classifier.pth"
    check_writable(path.parent)
    train, test = (
        registry.load(cfg.dataset, split, root=cfg.data_dir, size=cfg.input_size, channels=cfg.input_channels)
        for split in ("train", "test")
    )
    if train.labels is None or train.labels.shape[1] == 0:
        raise CommandError(f"--images: data set '{cfg.dataset}' has no labels to learn")

    from experiment import pick_device
    from metrics import classification

    device = pick_device(cfg.device)

    labels, test_labels = (part.labels.reshape(len(part), -1).astype(np.int64) for part in (train, test))
    heads = classification.head_sizes(np.concatenate([labels, test_labels]))
    network = classification.train_images(
        lambda rows: train.batch(rows, device), labels, heads, train.shape, cfg.epochs, cfg.batch_size,
        cfg.learning_rate if "learning_rate" in command.by_hand else 1e-3, own.width, cfg.r_seed, device, cfg.max_steps,
    )
    right = classification.right_answers(network, lambda rows: test.batch(rows, device), test_labels, heads)
    save_checkpoint(path, {
        "kind": "classifier",
        "model": {name: value.cpu() for name, value in network.state_dict().items()},
        "config": {"channels": train.shape[0], "size": train.shape[1], "classes": sum(heads), "width": own.width},
        "dataset": cfg.dataset, "data": registry.identity(train), "call": configuration.call_of(command, own),
        "heads": heads, "seed": cfg.r_seed,
        "accuracy": float(right.mean()), "accuracy_per_label": right.mean(axis=0).tolist(),
    })
    error = right.mean(axis=1).std(ddof=1) / np.sqrt(len(test))  # labels of one image go together
    print(f"accuracy {right.mean():.4f} +- {error:.4f} on {len(test)} test images ({cfg.dataset}) -> {path}")


def _run(argv: list[str]) -> None:
    if commandline.value_of(argv, "--from"):
        from experiment import expand_from

        argv = expand_from(argv)
    command, own = commandline.parse(argv, PROG, registry.SPECS, extra=_flags)
    if own.images:
        _train_images(command, own)
    else:
        _score(command, own)


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status: 0, or 2 after one line on stderr."""
    return exit_status(PROG, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
