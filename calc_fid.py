"""FID and KID of a folder of images:  python calc_fid.py NAME FOLDER

NAME is the reference: statistics that gen_fid_stats.py wrote (by name, or the path of an .npz file, which may also be
pytorch-fid's or clean-fid's), another folder of images, or with --data_dir a data set. The numbers go to
results/EXP/fid.json for a FOLDER in imgs/EXP/, else to results/FOLDER/fid.json, as one entry for each pair of folder
and reference under one extractor; --output names another file.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gen_fid_stats import Parser, build_extractor, parse, statistics_path
from utils import CommandError, exit_status, read_json, versions, writable_file, write_json


def result_path(folder: Path) -> Path:
    """ROOT/results/EXP/fid.json for a folder ROOT/imgs/EXP/LEAF, else ./results/LEAF/fid.json."""
    parts = folder.parts
    if "imgs" in parts[:-2]:
        cut = len(parts) - 1 - parts[::-1].index("imgs")
        return Path(*parts[:cut], "results", *parts[cut + 1 : -1], "fid.json")
    return Path("results", folder.absolute().name, "fid.json")


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
        f"no statistics {stored}, and no folder {path}: run first  "
        f"python gen_fid_stats.py {args.name} ./{args.name}_imgs{flags}  or give --data_dir for a data set"
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
    """The one line that a person reads."""
    se, kid, sd = record["fid_se"], record["kid"], record["kid_sd"]
    kid = "no KID" if kid is None else f"KID {kid:.6g}{'' if sd is None else f' (subset sd {sd:.2g})'}"
    known = "an unknown number" if record["reference_count"] is None else record["reference_count"]
    line = (
        f"FID {record['fid']:.6g}{'' if se is None else f' (se {se:.2g})'}, {kid}: "
        f"{record['extractor']}, resize {record['resize']}, weights {record['weights']}, {record['count']} images "
        f"against {known} of {record['reference']} -> {path}"
    )
    return f"{line} [{record['note']}]" if record["note"] else line


def _run(argv: list[str]) -> None:
    parser = Parser(prog="calc_fid.py", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="the reference: a name, an .npz file, a folder, or a data set")
    parser.add_argument("folder", metavar="FOLDER", help="folder of the images to measure, an image a file")
    args = parse(parser, argv)
    path = writable_file(args.output or result_path(Path(args.folder)))
    entries = read_json(path) if path.exists() else {}
    if not isinstance(entries, dict):
        raise CommandError(f"{path} holds no results of calc_fid.py: move it away, or give --output")
    place = find_reference(args)

    from metrics import fid

    fid.image_files(args.folder)
    reference = fid.read_statistics(place) if place and place.suffix == ".npz" else None
    extractor = build_extractor(args)
    if reference is None:
        images = (fid.folder_images(place, extractor.channels, args.num_workers) if place else
                  fid.dataset_images(args.name, args.data_dir, args.split, extractor.channels))
        reference = fid.measure(images, extractor, args.batch_size)
    images = fid.folder_images(args.folder, extractor.channels, args.num_workers)
    fid.refuse_unlike(reference, images.source, extractor.identity(), images.shape[-2:], extractor.dims)
    record = fid.compare(reference, fid.measure(images, extractor, args.batch_size))
    name = entry_name(args, place, record)
    record = {**record, "source": shown(args.folder), "call": vars(args), "versions": versions()}
    write_json(path, {**entries, name: record})
    print(report(record, path))


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status: 0, or 2 after one line on stderr."""
    return exit_status("calc_fid.py", _run, argv)


if __name__ == "__main__":
    sys.exit(main())
