"""FID and KID of a folder of images:  python calc_fid.py NAME FOLDER

NAME is the reference: statistics that gen_fid_stats.py wrote (by name, or the path of an .npz file), another folder of
images, or with --data_dir a data set. The numbers go to results/EXP/fid.json for a FOLDER in imgs/EXP/, else to
results/FOLDER/fid.json, as one entry a pair of folder and reference; --output names another file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gen_fid_stats import Parser, build_extractor, check_writable, parse, statistics_path
from utils import CommandError, exit_status, read_json, versions, write_json


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


def report(record: dict, path: Path) -> str:
    """The one line that a person reads."""

    se, sd = record["fid_se"], record["kid_sd"]
    line = (
        f"FID {record['fid']:.6g}{'' if se is None else f' (se {se:.2g})'}, "
        f"KID {record['kid']:.6g}{'' if sd is None else f' (subset sd {sd:.2g})'}: "
        f"{record['extractor']}, resize {record['resize']}, weights {record['weights']}, {record['count']} images "
        f"against {record['reference_count']} of {record['reference']} -> {path}"
    )
    return f"{line} [{record['note']}]" if record["note"] else line


def _run(argv: list[str]) -> None:
    parser = Parser(prog="calc_fid.py", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="the reference: a name, an .npz file, a folder, or a data set")
    parser.add_argument("folder", metavar="FOLDER", help="folder of the images to measure, an image a file")
    args = parse(parser, argv)
    path = check_writable(Path(args.output) if args.output else result_path(Path(args.folder)))
    entries = read_json(path) if path.exists() else {}
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
    fid.refuse_unlike(reference, images.source, extractor.identity(), images.shape[-2:])
    record = fid.compare(reference, fid.measure(images, extractor, args.batch_size))
    key = f"{Path(args.folder).name} vs {args.name} ({record['extractor']}, {record['resize']})"
    write_json(path, {**entries, key: {**record, "versions": versions()}})
    print(report(record, path))


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status: 0, or 2 after one line on stderr."""
    return exit_status("calc_fid.py", _run, argv)


if __name__ == "__main__":
    sys.exit(main())
