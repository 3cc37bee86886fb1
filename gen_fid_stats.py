"""Measure reference images once, for calc_fid.py:  python gen_fid_stats.py NAME [FOLDER]

Writes mean, covariance and a draw of the features to {stats_folder}/NAME.npz (NAME_clean.npz with --resize clean,
NAME_efficientnet.npz with --extractor efficientnet, NAME_test.npz with --split test). The images are those of FOLDER
and its subfolders, or with --data_dir those of the data set called NAME. Under torchrun, processes share the images.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path

from config import integer
from dataset.registry import SPECS
from utils import CommandError, exit_status, first_line, writable_file


class Parser(argparse.ArgumentParser):
    """argparse, whose errors become our one-line ones, and whose descriptions keep their lines."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str):
        raise CommandError(message)


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Add the flags that gen_fid_stats.py and calc_fid.py share, and parse. Raises CommandError for a wrong one."""
    _add_flags(parser)
    args = parser.parse_args(argv)
    if args.extractor != "inception" and (args.resize != "pytorch" or args.inception_weights):
        raise CommandError(f"--resize and --inception_weights are Inception's: not for --extractor {args.extractor}")
    if args.data_dir and args.name not in SPECS:
        raise CommandError(f"with --data_dir, '{args.name}' must be a data set (known: {', '.join(SPECS)})")
    return args


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--extractor", choices=("inception", "efficientnet", "classifier"), default="inception",
                        help="network whose features are compared: inception is the literature's, and downloads its "
                        "weights; efficientnet needs no download, for images from 28 pixels a side; classifier is a "
                        "small CNN trained on the data set itself (train_classifier.py --images). Distances of "
                        "different networks do not compare (default: %(default)s)")
    parser.add_argument("--resize", choices=("pytorch", "clean"), default="pytorch",
                        help="how images reach Inception's 299 pixels: bilinear as in pytorch-fid, or antialiased "
                        "bicubic as in clean-fid (default: %(default)s)")
    parser.add_argument("--inception_weights", metavar="PATH",
                        help="pytorch-fid's weights file (default: torch hub's cache, or a download to there)")
    parser.add_argument("--classifier", metavar="PATH", help="checkpoint for --extractor classifier (default: "
                        "{model_folder}/NAME_classifier.pth)")
    parser.add_argument("--batch_size", type=integer(1), default=64,
                        help="images a step, of no account for the numbers (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--num_workers", type=integer(1, 256), default=min(8, os.cpu_count() or 1),
                        help="threads that decode images (default: the processor's cores, 8 at most)")
    parser.add_argument("--data_dir", help="folder of the data sets; NAME is then a data set, measured itself "
                        "(default: none)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train",
                        help="which part of the data set (default: %(default)s)")
    parser.add_argument("--model_folder", default="./models", help="root of the checkpoints (default: %(default)s)")
    parser.add_argument("--stats_folder", default="./fid_stats",
                        help="folder of the reference statistics (default: %(default)s)")
    parser.add_argument("--output", metavar="PATH", help="file to write (default: as said above)")


def statistics_path(args: argparse.Namespace) -> Path:
    """Where the reference statistics of NAME under this extractor are kept."""
    variant = "_clean" if args.resize == "clean" else "" if args.extractor == "inception" else f"_{args.extractor}"
    split = "" if args.split == "train" else f"_{args.split}"
    return Path(args.stats_folder) / f"{args.name}{split}{variant}.npz"


def build_extractor(args: argparse.Namespace):
    """The `extractors.Extractor` that the flags name, on this process's device; processes of torchrun meet here.

    Raises CommandError where its weights cannot be found.
    """
    import distributed
    from experiment import pick_device
    from metrics import extractors

    device = pick_device(args.device)
    distributed.start(device)
    if args.extractor == "inception":
        return extractors.inception(args.inception_weights, device, args.resize)
    if args.extractor == "efficientnet":
        return extractors.efficientnet(device)
    if args.classifier:  # whatever it was trained on: it is meant
        return replace(extractors.classifier(args.classifier, device), trained_on=None)
    return extractors.classifier(Path(args.model_folder) / f"{args.name}_classifier.pth", device)


@contextlib.contextmanager
def sharing():
    """Within it processes of torchrun share images; where one of them stops, the others do, with a line each."""
    import distributed

    try:
        yield
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        raise CommandError(f"process {distributed.rank()} lost another one ({first_line(error)})") from None
    finally:
        distributed.stop()


def _run(argv: list[str]) -> None:
    parser = Parser(prog="gen_fid_stats.py", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="what the statistics are called, or with --data_dir a data set")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="folder of reference images, an image a file")
    args = parse(parser, argv)
    if (args.folder is None) == (args.data_dir is None):
        raise CommandError("give either a FOLDER of images or --data_dir, where NAME is a data set")
    if args.folder and args.split != "train":
        raise CommandError(f"--split {args.split} is of a data set, and {args.folder} a folder: leave it out")
    path = writable_file(args.output or statistics_path(args))

    import distributed
    from metrics import fid

    if args.folder:
        fid.image_files(args.folder)
    with sharing():
        extractor = build_extractor(args)
        if args.folder:
            images = fid.folder_images(args.folder, extractor.channels, args.num_workers)
        else:
            images = fid.dataset_images(args.name, args.data_dir, args.split, extractor)
        statistics = fid.measure(images, extractor, args.batch_size)
    if distributed.is_main():
        fid.write_statistics(path, statistics)
        print(f"{path}: {statistics.count} images of {images.source} ({extractor.name}, resize {extractor.resize}, "
              f"weights {extractor.weights})")


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status: 0, or 2 after one line on stderr."""
    return exit_status("gen_fid_stats.py", _run, argv)


if __name__ == "__main__":
    sys.exit(main())
