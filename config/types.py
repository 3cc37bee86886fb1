"""argparse types: text -> a value in its range."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path


def integer(low: int, high: int = 2**31 - 1):
    """An argparse type: a whole number in [low, high]."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not in {low} .. {high}")
        return value

    parse.__name__ = "whole number"
    return parse


def number(low: float = -math.inf, high: float = math.inf, above: bool = False):
    """An argparse type: a finite number in [low, high], or in (low, high] where `above` is set."""

    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high) or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is not a number {'above' if above else 'from'} {low} to {high}")
        return value

    parse.__name__ = "number"
    return parse


def place(text: str) -> str:
    """An argparse type: a path whose names, and which itself, a file system can hold."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path: is a variable of the shell not set?")
    if len(os.fsencode(text)) > 3000 or any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise argparse.ArgumentTypeError(f"'{text[:20]}...' is a path with a name of more than 255 bytes")
    return text


place.__name__ = "path"
