"""The command line: one parser of all flags, whose help shows what a mode reads, and `parse`, which makes a Command."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from config import (
    FIELDS,
    FOREIGN_SCHEDULE,
    MODES,
    PROGRAM,
    Command,
    Config,
    Mode,
    check,
    is_switch,
    names_of,
    normalise,
    reads,
    words_for,
)
from utils import CommandError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse, whose errors become our one-line ones and know what may have been meant. No abbreviations."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message: str):
        raise CommandError(message)

    def parse_args(self, words=None, namespace=None):
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            raise CommandError(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(unknown[0], flags)}")
        return found

    def _check_value(self, action, value):
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"{error.message}{did_you_mean(str(value), choices)}") from None


class _Help(argparse.RawDescriptionHelpFormatter):
    """Wide lines: a flag takes one or two. Descriptions keep their own."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=118)


def _default_text(item, readers: tuple[str, ...]) -> str:
    if item.metadata["unset"]:
        return words_for(item.metadata["unset"], *readers)
    if isinstance(item.default, tuple):
        return " ".join(map(str, item.default))
    if isinstance(item.default, bool):
        return "on" if item.default else "off"
    return str(item.default) or "none"


_ALSO = {"epochs": ["-e"], "save_epochs": ["--save_epoch"]}  # published spellings beside a flag's own


def _add_flag(parser, item, readers: tuple[str, ...], shown: bool) -> None:
    """A flag as its readers' help has it: a mode or program, and its groups of flags; () for all."""
    options = dict(item.metadata["options"])
    text = f"{words_for(item.metadata['help'], *readers)} (default: {_default_text(item, readers)})".replace("%", "%%")
    if item.default is True or is_switch(item):
        options["action"] = argparse.BooleanOptionalAction
    elif isinstance(item.default, bool):
        options["action"] = "store_true"
    elif "choices" not in options:
        options["metavar"] = _METAVARS.get(getattr(options.get("type"), "__name__", ""), "WORD")
    names = [f"--{item.name.rstrip('_')}", *_ALSO.get(item.name, [])]
    parser.add_argument(*names, dest=item.name, default=argparse.SUPPRESS, help=text if shown else argparse.SUPPRESS,
                        **options)


_METAVARS = {"whole number": "N", "number": "X", "path": "PATH"}
_GROUPS = {"model": "what the model is", "training": "how it is trained", "run": "this call"}


def build_parser(prog: str, mode: str | None = None, row: Mode | None = None) -> Parser:
    """The parser of every flag. With a mode or a program's row, its help shows the flags that this one reads."""
    row = row or MODES.get(mode)
    trains = row is not None and "training" in row.uses
    readers = () if row is None else (mode or prog, *row.uses)
    parser = Parser(prog=prog, description=(MODES[mode].about + ".") if mode else None, epilog=_example(prog, mode),
                    usage=f"{prog} --mode {mode} [flags]" if mode else f"{prog} [flags]")
    if row is not PROGRAM:
        parser.add_argument("--mode", choices=tuple(MODES), default="train", metavar="MODE",
                            help="what to do (default: train)")
    groups = _GROUPS if trains or row is None else {**_GROUPS, "training": _GROUPS["run"]}
    for kind, title in groups.items():
        short = kind == "model" and row is not None and not trains  # the flags that find a trained model, or --from
        if kind != "run" or title != groups["training"]:
            group = parser.add_argument_group(title, f"as it was trained, or --from; {prog} --help all lists the others"
                                              if short else None)
        for name in names_of(kind):
            shown = row is None or (reads(row, mode or prog, name) and (name in _FINDING or not short))
            _add_flag(group, FIELDS[name], readers if shown else (), shown)
    return parser


_FINDING = ("model", "dataset", "a_dim", "kld_weight", "mmd_weight", "z_dropout", "loss", "tag")


def _example(prog: str, mode: str | None) -> str | None:
    """A command line to begin with, at the end of a mode's help."""
    if mode is None:
        return None
    prog = prog.removeprefix("python ")
    if "training" in MODES[mode].uses:
        return f"example: python {prog} --mode {mode} --dataset digits --epochs 40 --learning_rate 1e-3"
    return f"example: python {prog} --mode {mode} --from models/EXP"


def parse(argv: list[str], prog: str, datasets: dict, extra=None,
          also: Iterable[str] = ()) -> Command | tuple[Command, argparse.Namespace]:
    """Turn a command line into a `Command`.

    argv      the words after the program's name
    extra     a function that adds a program's own flags to an argparse group; their namespace is then returned too
    datasets  name -> the data set's Spec, for all sets that exist
    also      modes and programs that receive, of the same words, the flags that they read
    Raises CommandError for an unknown flag, a value out of its range, a flag that has no effect here, or flags that
    contradict each other.
    """
    if argv[:2] in (["--help", "all"], ["-h", "all"]):
        build_parser(prog).parse_args(["--help"])
    row = PROGRAM if extra and "--mode" not in argv else None
    mode = None
    if row is None:
        mode = value_of(argv, "--mode", choices=tuple(MODES))
    parser = build_parser(prog, mode, row)
    own = [action.dest for action in _add_extra(parser, extra)]
    typed = vars(parser.parse_args(argv))
    others = argparse.Namespace(**{name: typed.pop(name) for name in own})
    mode = typed.pop("mode", None)
    by_hand = frozenset(typed)
    typed = {**FOREIGN_SCHEDULE.get(typed.get("denoiser"), {}), **typed}
    config = Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in typed.items()})
    _refuse_unread(row or MODES[mode], mode or prog, by_hand, also)
    config = normalise(config, datasets, by_hand)
    check(config, mode, by_hand)
    command = Command(mode, config, by_hand)
    return (command, others) if extra else command


def value_of(argv: list[str], flag_name: str, **options) -> str | None:
    """What is typed for one flag, before all others are known; None where it is not. `options` as of add_argument."""
    alone = Parser(add_help=False)
    alone.add_argument(flag_name, dest="value", nargs="?", **options)
    return alone.parse_known_args(argv)[0].value


def _add_extra(parser: argparse.ArgumentParser, extra) -> list[argparse.Action]:
    if extra is None:
        return []
    before = len(parser._actions)
    extra(parser.add_argument_group("this program"))
    return parser._actions[before:]


def _refuse_unread(row: Mode, reader: str, by_hand: frozenset[str], also: Iterable[str]) -> None:
    """Raise CommandError for a typed flag that neither the mode or program reads, nor one of those after it."""
    readers = [(row, reader), *((MODES.get(name, PROGRAM), name) for name in also)]
    for name in sorted(by_hand):
        if not (FIELDS[name].metadata["anywhere"] or any(reads(*one, name) for one in readers)):
            where = f"--mode {reader}" if reader in MODES else "this program"
            raise CommandError(f"--{name} has no effect on {where}: leave it out")
