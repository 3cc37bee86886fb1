"""FID, KID, precision, recall, density and coverage of a folder of images:  python calc_fid.py NAME FOLDER

NAME is the reference: statistics that gen_fid_stats.py wrote (by name, or the path of an .npz file, which may also be
pytorch-fid's or clean-fid's), another folder of images, or with --data_dir a data set. The numbers go to
results/EXP/fid.json for a FOLDER in imgs/EXP/, else to results/FOLDER/fid.json, as one entry for each pair of folder
and reference under one extractor; --output names another file. Under torchrun, processes share the images.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from config import integer
from gen_fid_stats import Parser, build_extractor, parse, sharing, statistics_path
from metrics.measured import setting_of
from utils import (
    CommandError,
    exit_status,
    locked,
    read_json,
    to_its_error,
    versions,
    writable_file,
    write_json,
)


def result_path(folder: Path) -> Path:
    """ROOT/results/EXP/fid.json for a folder ROOT/imgs/EXP/LEAF, else ./results/LEAF/fid.json."""
    parts = folder.parts
    if "imgs" in parts[:-2]:
        cut = len(parts) - 1 - parts[::-1].index("imgs")
        return Path(*parts[:cut], "results", *parts[cut + 1 : -1], "fid.json")
    return Path("results", folder.absolute().name, "fid.json")


def drawn_from(folder: Path) -> dict:
    """How a folder of samples was drawn, and of which checkpoint, as --mode eval_fid has left it; {} for others."""
    manifest = result_path(folder).with_name(f"{folder.absolute().name}.json")
    drawn = setting_of(read_json(manifest)) if manifest.is_file() else {}
    return {"checkpoint_hash": drawn["checkpoint_hash"], "drawn": drawn} if "checkpoint_hash" in drawn else {}


def entries_of(path: Path) -> dict:
    """The results in a file so far. Raises CommandError where it is none of ours."""
    entries = read_json(path) if path.exists() else {}
    if not isinstance(entries, dict):
        raise CommandError(f"{path} holds no results of calc_fid.py: move it away, or give --output")
    return entries


def add_result(path: Path, name: str, record: dict) -> None:
    """Put a result beside those in the file, also beside those of other processes that measure now."""
    with locked(path.parent, patience=60, else_="give --output"):
        write_json(path, {**entries_of(path), name: record})


def find_reference(args: argparse.Namespace) -> Path | None:
    """The statistics file or image folder that NAME means; None for a data set. Raises CommandError for neither."""
    if args.data_dir:
        return None
    path = Path(args.name)
    stored = path if path.suffix == ".npz" else statistics_path(args)
    if stored.is_file() or path.suffix == ".npz":
        return stored
    if path.is_dir():
        return path
    flags = "".join(f" --{flag} {getattr(args, flag)}" for flag, usual in (("extractor", "inception"),
                    ("resize", "pytorch")) if getattr(args, flag) != usual)
    raise CommandError(
        f"no statistics {stored}, and no folder {path}: run "
        f"'python gen_fid_stats.py {args.name} ./{args.name}_imgs{flags}' first, or give --data_dir for a data set"
    )


def shown(path: str | Path) -> str:
    """A path as the working folder sees it, so that one place has one name; absolute where it is not below."""
    plain = Path(os.path.normpath(Path(path).absolute()))
    return str(plain.relative_to(Path.cwd()) if plain.is_relative_to(Path.cwd()) else plain)


def entry_name(args: argparse.Namespace, place: Path | None, record: dict) -> str:
    """The name of a result: everything that makes it another number, so that no result takes another's place."""
    reference = f"{args.name} ({args.split}) of {shown(args.data_dir)}" if place is None else shown(place)
    measured_by = f"{record['extractor']}, {record['resize']}, weights {record['weights'][:8]}"
    return f"{shown(args.folder)} vs {reference} ({measured_by})"


def report(record: dict, path: Path) -> str:
    """The lines that a person reads."""

    def shown_score(name: str, label: str) -> str:
        value, se = record.get(name), record.get(f"{name}_se")
        if value is None or se is None:
            return f"no {label}" if value is None else f"{label} {value:.6g}"
        value, se = to_its_error(value, se)
        return f"{label} {value} (se {se})"

    known = "an unknown number" if record["reference_count"] is None else record["reference_count"]
    scores = [shown_score("fid", "FID"), shown_score("kid", "KID")]
    if "fid_infinity" in record:
        scores.insert(1, shown_score("fid_infinity", "FID_infinity"))
    line = (
        f"{', '.join(scores)}: {record['extractor']}, resize {record['resize']}, weights {record['weights']}, "
        f"{record['count']} images against {known} of {record['reference']} -> {path}"
    )
    more = [shown_score(name, name) for name in ("precision", "recall", "density", "coverage")
            if record[name] is not None]
    if record["fid_bias"] is not None:
        more.append(f"bias of FID at {record['count']} images about {record['fid_bias']:.3g}")
    line = f"{line} [{record['note']}]" if record["note"] else line
    return "\n".join([line, ", ".join(more)]) if more else line


def nearest_path(args: argparse.Namespace) -> Path:
    """The picture of nearest images, beside FOLDER, named by both."""
    reference = f"{args.name}-{args.split}" if args.data_dir else args.name
    folder = Path(os.path.normpath(Path(args.folder).absolute()))
    return folder.with_name(f"{folder.name}-nearest-{re.sub(r'[^A-Za-z0-9_.]+', '-', reference).strip('-.')}.png")


def draw_nearest(images, reference, nearest, path: Path) -> dict:
    """Rows of the first images, each above a row of the reference's nearest images; what they are, for the record."""
    import numpy as np

    import plots

    count, columns = len(nearest.number), min(8, len(nearest.number))
    pairs = np.stack([images.read(np.arange(count)), reference.read(nearest.number)])  # [2, N, C, H, W]
    pairs = np.concatenate([pairs, np.full_like(pairs[:, :1], 255).repeat(-count % columns, axis=1)], axis=1)
    rows = pairs.reshape(2, -1, columns, *pairs.shape[2:]).swapaxes(0, 1)  # a row of images, a row of the nearest, ...
    plots.write_png(path, plots.sheet(rows.reshape(-1, *pairs.shape[2:]).transpose(0, 2, 3, 1), columns))
    found = zip(range(count), nearest.number.tolist(), nearest.distance.tolist(), strict=True)
    return {"picture": shown(path), "pairs": [{"image": images.name(k), "nearest": reference.name(number),
                                               "distance": distance} for k, number, distance in found]}


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the reference: a name, an .npz file, a folder, or a data set")
    parser.add_argument("folder", metavar="FOLDER", help="folder of the images to measure, an image a file")
    parser.add_argument("--extrapolate", action="store_true",
                        help="also FID in the limit of infinitely many images: a hundred distances more")
    parser.add_argument("--nearest", metavar="N", type=integer(1, 64),
                        help="draw the first N images, each with the nearest of the reference in feature space beneath "
                        "it (is it a copy?), as FOLDER-nearest-NAME.png; the reference must be a folder or a data set")


def _run(argv: list[str]) -> None:
    parser = Parser(prog="calc_fid.py", description=__doc__)
    _flags(parser)
    args = parse(parser, argv)
    path = writable_file(args.output or result_path(Path(args.folder)))
    entries_of(path)
    place, origin = find_reference(args), drawn_from(Path(args.folder))

    import distributed
    from metrics import fid

    fid.image_files(args.folder)
    stored = fid.read_statistics(place) if place and place.suffix == ".npz" else None
    picture = nearest_path(args) if args.nearest else None
    if picture and stored:
        raise CommandError(f"--nearest shows images, and {place} holds statistics: give their folder, or --data_dir")
    if picture:
        writable_file(picture)
    with sharing():
        record, draw = measure(args, place, stored)
    if not distributed.is_main():
        return
    name = entry_name(args, place, record)
    record = {**record, "source": shown(args.folder), **origin, "call": vars(args), "versions": versions()}
    print(report(record, path))
    add_result(path, name, record)
    if picture:
        record["nearest"] = draw(picture)
        add_result(path, name, record)
        print(f"the first {len(record['nearest']['pairs'])} images above their nearest in {record['reference']} -> "
              f"{record['nearest']['picture']}")


def measure(args: argparse.Namespace, place: Path | None, reference):
    """The scores of FOLDER against the reference, statistics or None; and the drawer of its nearest images."""
    import numpy as np

    from metrics import distances, fid

    extractor = build_extractor(args)
    images = fid.folder_images(args.folder, extractor.channels, args.num_workers)
    extractor.refuse(images.source, *images.shape[-2:])
    if reference is not None:
        fid.refuse_unlike(reference, images.source, extractor.identity(), images.shape[-2:], extractor.dims)
        return fid.compare(reference, fid.measure(images, extractor, args.batch_size), args.extrapolate), None
    originals = (fid.folder_images(place, extractor.channels, args.num_workers) if place else
                 fid.dataset_images(args.name, args.data_dir, args.split, extractor))
    fid.refuse_sizes(originals.source, originals.shape[-2:], images.source, images.shape[-2:])
    nearest = None
    if args.nearest:
        nearest = distances.Nearest(extractor(images.read(np.arange(min(args.nearest, images.count)))))
    reference = fid.measure(originals, extractor, args.batch_size, nearest)
    record = fid.compare(reference, fid.measure(images, extractor, args.batch_size), args.extrapolate)
    return record, lambda path: draw_nearest(images, originals, nearest, path)


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status: 0, or 2 after one line on stderr."""
    return exit_status("calc_fid.py", _run, argv)


if __name__ == "__main__":
    sys.exit(main())
