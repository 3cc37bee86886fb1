"""Do the scores of calc_fid.py see damage? Real images against real, blurred, noised and one-sided ones.

    python -m scripts.features_table fmnist shapes3d --images 500

Of each data set's training split, in random order, the first images are the reference and the next ones are measured as
they are and after damage of two strengths. The Markdown table and ./results/features/table.json have every score with
its standard error, how many standard errors each strength lies above the one before, and the images a second of
extraction; ./results/features/DATASET.png shows the damage, a strength a row.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch

import plots
from config import integer
from dataset import registry
from metrics import extractors, fid
from utils import CommandError, check_writable, exit_status, markdown_table, versions, write_json

PROG = "python -m scripts.features_table"
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage")
STRENGTHS = {"blurred": (1.0, 2.0), "noised": (8, 24), "one-sided": (0.5, 1.0)}
MEANING = {
    "real": "other images of the set, as they are",
    "blurred": "Gaussian blur of so many pixels",
    "noised": "Gaussian noise of so many of 255 levels",
    "one-sided": "so large a share of the images of the later half of the classes replaced by images of the others",
}
SHOWN = 8  # images a row of the picture


def blurred(pixels: np.ndarray, numbers: np.ndarray, strength: float) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(pixels.astype(np.float32), (0, 0, strength, strength)).round().astype(np.uint8)


def noised(pixels: np.ndarray, numbers: np.ndarray, strength: float) -> np.ndarray:
    noise = np.stack([np.random.default_rng([1, number]).standard_normal(pixels.shape[1:]) for number in numbers])
    return (pixels + strength * noise).round().clip(0, 255).astype(np.uint8)


def one_sided(classes: np.ndarray, spare: np.ndarray, share: float) -> np.ndarray:
    """Rows 0 .. N - 1, where a share of those whose class [N] is in the second half give way to `spare` rows."""
    rows = np.arange(len(classes))
    late = np.flatnonzero(classes > classes.max() // 2)
    gone = np.random.default_rng(2).permutation(late)[: round(share * len(late))]
    rows[np.sort(gone)] = spare[: len(gone)]
    return rows


def sets_of(dataset: registry.Dataset, count: int, channels: int) -> dict[tuple[str, float], fid.Images]:
    """The reference, the real images and all damaged ones, by (damage, strength)."""
    column = dataset.label_names.index("shape") if dataset.labels.shape[1] > 1 else 0
    labels = dataset.labels[:, column]
    early = np.flatnonzero(labels <= labels.max() // 2)
    spare = early[early >= 2 * count]
    if len(dataset) < 2 * count or len(spare) < count:
        raise CommandError(f"--images {count} needs five times as many: {dataset.spec.name} has {len(dataset)}")

    def images(name: str, rows: np.ndarray, change: Callable | None = None, *strength: float) -> fid.Images:
        def read(numbers):
            pixels = registry.recolour(dataset.raw(rows[numbers]).numpy(), channels)
            return change(pixels, numbers, *strength) if change else pixels

        return fid.Images(name, len(rows), (channels, *dataset.shape[1:]), read)

    own = np.arange(count, 2 * count)
    found = {("reference", 0.0): images("reference", np.arange(count)), ("real", 0.0): images("real", own)}
    for name, change in (("blurred", blurred), ("noised", noised)):
        for strength in STRENGTHS[name]:
            found[name, strength] = images(f"{name} {strength}", own, change, strength)
    for share in STRENGTHS["one-sided"]:
        chosen = one_sided(labels[own], spare, share)
        found["one-sided", share] = images(f"one-sided {share}", np.where(chosen < count, own[chosen % count], chosen))
    return found


def measure(name: str, count: int, data_dir: str, extractor: extractors.Extractor, picture: Path) -> dict:
    """Rows of the table of one data set, and images a second."""
    dataset = registry.load(name, "train", root=data_dir, limit=5 * count)
    sets = sets_of(dataset, count, extractor.channels)
    damaged = [images for (kind, _), images in sets.items() if kind != "reference"]
    examples = np.concatenate([images.read(np.arange(SHOWN)) for images in damaged])
    plots.write_png(picture, plots.sheet(examples.transpose(0, 2, 3, 1), SHOWN))
    reference = fid.measure(sets.pop(("reference", 0.0)), extractor)
    rows, start, clock = [], time.perf_counter(), time.process_time()
    for (kind, strength), images in sets.items():
        measured = fid.measure(images, extractor)
        rows.append({"damage": kind, "strength": strength, "statistics": measured})
    elapsed, processor = time.perf_counter() - start, time.process_time() - clock
    for row in rows:
        row |= fid.compare(reference, row.pop("statistics"))
    for row in rows:
        row["above"] = steps_above(row, rows)
    total = count * len(rows)
    return {"rows": rows, "images_per_second": total / elapsed, "images_per_processor_second": total / processor}


def steps_above(row: dict, rows: list[dict]) -> float | None:
    """Standard errors by which FID lies above that of the next weaker strength, the real images being the weakest."""
    kin = [other for other in rows if other["damage"] in (row["damage"], "real")]
    weaker = [other for other in kin if other["strength"] < row["strength"]]
    if not weaker:
        return None
    below = max(weaker, key=lambda other: other["strength"])
    return (row["fid"] - below["fid"]) / (row["fid_se"] ** 2 + below["fid_se"] ** 2) ** 0.5


def table(name: str, rows: list[dict]) -> str:
    head = [name, "strength", *(score.upper() if len(score) == 3 else score for score in SCORES), "se above the last"]
    digits = {"fid": (2, 2), "kid": (4, 4)}
    body = []
    for row in rows:
        cells = []
        for score in SCORES:
            first, second = digits.get(score, (3, 3))
            cells.append(f"{row[score]:.{first}f} ± {row[score + '_se']:.{second}f}")
        above = "" if row["above"] is None else f"{row['above']:.1f}"
        body.append([row["damage"], f"{row['strength']:g}", *cells, above])
    return markdown_table(head, body)


def _run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--images", type=integer(20), default=1000, help="images a set (default: %(default)s)")
    parser.add_argument("--data_dir", default="./data", help="folder of the data sets (default: %(default)s)")
    parser.add_argument("--folder", default="./results/features", help="where to write (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ... (default: %(default)s)")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    check_writable(folder)
    extractor = extractors.efficientnet(args.device)
    record = {"images": args.images, "meaning": MEANING, "threads": torch.get_num_threads(),
              "versions": versions(), "sets": {}}
    for name in args.datasets:
        found = record["sets"][name] = measure(name, args.images, args.data_dir, extractor, folder / f"{name}.png")
        print(table(name, found["rows"]), flush=True)
        print(f"{found['images_per_second']:.1f} images a second, {found['images_per_processor_second']:.1f} a second "
              f"of the processor ({record['threads']} threads)", flush=True)
        write_json(folder / "table.json", record)


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status: 0, or 2 after one line on stderr."""
    return exit_status(PROG, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
