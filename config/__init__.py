"""What an experiment is: one frozen `Config`, built once (commandline.py) and stored whole in every checkpoint.

    modes.py     MODES and SAMPLERS: a row each
    flags.py     Config: a field a flag, and the experiment's name and folders that follow from it
    rules.py     which flags go together
    stored.py    configs in checkpoints and result files
    types.py     argparse types
"""

from config.flags import (
    FIELDS,
    FOREIGN_SCHEDULE,
    Command,
    Config,
    default_of,
    folder,
    is_switch,
    names_of,
    reads,
    typed,
    words_for,
    words_of,
)
from config.modes import FITTED_STEPS, MODELS, MODES, PROGRAM, SAMPLERS, SPACINGS, Mode, Sampler
from config.rules import check, normalise
from config.stored import call_of, from_stored, on_own_schedule, refuse_other_run, shown, to_dict, trained
from config.types import integer, number

__all__ = [
    "FIELDS", "FITTED_STEPS", "FOREIGN_SCHEDULE", "MODELS", "MODES", "PROGRAM", "SAMPLERS", "SPACINGS",
    "Command", "Config", "Mode", "Sampler", "call_of", "check", "default_of", "folder", "from_stored", "integer",
    "is_switch", "names_of", "normalise", "number", "on_own_schedule", "reads", "refuse_other_run", "shown", "to_dict",
    "trained", "typed", "words_for", "words_of",
]
