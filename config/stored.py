"""Configs in checkpoints and result files: out, in, and beside the one that is typed now."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from config.flags import FIELDS, FOREIGN_SCHEDULE, Command, Config, is_switch, names_of, reads
from config.modes import MODES
from config.rules import check, check_steps
from utils import CommandError


def to_dict(config: Config) -> dict:
    return asdict(config)


def call_of(command: Command, own: argparse.Namespace | None = None) -> dict:
    """This command's own flags, for a result file: the mode with what it reads beside the model, and what was typed.

    own     a program's own flags; it has no mode
    """
    mode, config, by_hand = command
    if own is not None:
        return {**{name: getattr(config, name) for name in sorted(by_hand | {"r_seed"})}, **vars(own)}
    read = {name for name in names_of("run") if mode in MODES and reads(MODES[mode], mode, name)} - {"epochs"}
    names = sorted(read | {"r_seed", "batch_size", "precision"} | by_hand)
    return {"mode": mode, **{name: getattr(config, name) for name in names}}


def from_stored(stored: object, path: Path) -> Config:
    """The config in a checkpoint, held to what a typed one is. A flag younger than the checkpoint has its default,
    and --flip what it was for everybody's own folders before there was a flag: on.

    Raises CommandError, naming the flag, for anything that could not have been typed.
    """
    if not isinstance(stored, dict):
        raise CommandError(f"{path}: its config is no config of this program")
    if isinstance(stored.get("compile"), bool):  # of a checkpoint from before the choice
        stored = {**stored, "compile": "full" if stored["compile"] else "off"}
    if stored.get("dataset") == "folder" and "flip" not in stored:
        stored = {**stored, "flip": True}
    stored = {name: value for name, value in stored.items() if name in FIELDS or not _is_off(value)}
    for name, value in stored.items():
        if name not in FIELDS:
            raise CommandError(f"{path}: its config has --{str(name)[:40]}, which this version of the suite has not")
        if not _could_be_typed(FIELDS[name], value):
            raise CommandError(f"{path}: its config has --{str(name)[:40]} {str(value)[:40]!r}, which cannot be")
    config = Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()})
    try:
        check(config, None, frozenset())
    except CommandError as error:
        raise CommandError(f"{path}: its config contradicts itself: {error}") from None
    return config


def _is_off(value) -> bool:
    """Whether a flag that is gone had no effect when the checkpoint was made."""
    return value is None or isinstance(value, bool | int | float | str | list | tuple) and not value


def on_own_schedule(stored: Config, network: object) -> Config:
    """A stored config with the schedule of a pretrained network, by flag.

    Checkpoints from before a flag could name it hold the flags' plain defaults, whatever the network's own schedule.
    network    the description of it that the checkpoint holds, or None
    """
    own = FOREIGN_SCHEDULE.get(stored.denoiser)
    plain = all(getattr(stored, name) == FIELDS[name].default for name in FOREIGN_SCHEDULE["ddpm"])
    if own is None or not plain:
        return stored
    said = network.get("schedule") if isinstance(network, dict) else None
    said = said if isinstance(said, dict) else {}
    typed = said.get("name") == stored.schedule and said.get("steps") == stored.diffusion_steps
    if typed and ("beta1" not in own or said.get("beta1") == stored.beta1):
        return stored
    return replace(stored, **own)


def _could_be_typed(item, value) -> bool:
    """Whether a stored value is one that the flag would accept, or its default."""
    options, default = item.metadata["options"], item.default
    if isinstance(value, list | tuple) or isinstance(default, tuple):
        return isinstance(default, tuple) and isinstance(value, list | tuple) and all(
            _accepts(options, one) for one in value)
    if is_switch(item):
        return value in (None, True, False)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return value is None if value is None and default is None else _accepts(options, value)


def _accepts(options: dict, value) -> bool:
    """Whether an argparse type and its choices take a value."""
    parse_text = options.get("type", str)
    try:
        same = isinstance(value, str | int | float) and parse_text(str(value)) == value
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return same and value in options.get("choices", (value,))


def trained(config: Config, by_hand: frozenset[str], stored: Config, path: Path) -> Config:
    """This call's config with what the model is taken from its checkpoint's.

    Raises CommandError where a flag typed by hand contradicts the checkpoint at `path`.
    """
    for name in names_of("model"):
        typed, own = getattr(config, name), getattr(stored, name)
        if name in by_hand and typed != own:
            raise CommandError(f"--{name} {typed} contradicts {path}, trained with {own}")
    config = replace(config, **{name: getattr(stored, name) for name in names_of("model")})
    check_steps(config, by_hand)
    return config


def refuse_other_run(config: Config, stored: Config, path: Path) -> None:
    """Raise CommandError where the folder of `path` holds a run with another way of training."""
    for name in (*names_of("model"), *names_of("training")):
        now, before = getattr(config, name), getattr(stored, name)
        if now != before:
            apart = "leave --from out, and add --tag NAME," if config.from_ else "add --tag NAME"
            raise CommandError(
                f"{path.parent} holds a run with --{name} {_or_default(before)}, not {_or_default(now)}: "
                f"{apart} for a run of its own, or --no-resume to replace it"
            )


def _or_default(value) -> str:
    return "at its default" if value is None else str(value)


def shown(value) -> str:
    """A value of whatever kind and length, for a line of text."""
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"{text[:80]}..."
