"""Whatever is typed or stands in a table: read, or one line. Whatever a config is, its name is below the root."""

import argparse
import copy
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eval_disentanglement
import run
import train_classifier
import training
from commandline import parse
from config import MODES, Config, folder, to_dict
from dataset import labels, registry
from experiment import open_trained
from metrics import fid
from utils import UNREADABLE, CommandError, load_checkpoint

FIELDS = {item.name: item for item in fields(Config)}
NUMBERS = st.one_of(
    st.integers(-3, 12), st.integers(), st.floats(), st.sampled_from(["1e400", "-0", "1_0", "0x10", "٣", "1e-320", ""])
).map(str)
TEXTS = st.one_of(NUMBERS, st.text(max_size=12), st.sampled_from(["..", "/", "-", "--", "a b", "None", "=", "%s"]))


def values(name: str):
    """What may follow a flag: mostly a value that could be meant, now and then anything."""
    options = FIELDS[name].metadata["options"]
    choices = [st.sampled_from(list(map(str, options["choices"])))] if "choices" in options else []
    numbers = [NUMBERS] if "type" in options else []
    if name == "dataset":
        choices = [st.sampled_from(list(registry.SPECS))]
    return st.one_of(*choices, *numbers, TEXTS)


@st.composite
def flags(draw) -> list[str]:
    words = []
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=6)):
        words.append(f"--{name}")
        if not isinstance(FIELDS[name].default, bool) and draw(st.integers(0, 9)):
            words += [draw(values(name)) for _ in range(draw(st.integers(1, 2)) if "nargs" in
                                                        FIELDS[name].metadata["options"] else 1)]
    if draw(st.booleans()):
        words += ["--mode", draw(st.sampled_from(list(MODES)))]
    return words


def check_config(config: Config) -> None:
    for name, item in FIELDS.items():
        choices = item.metadata["options"].get("choices")
        value = getattr(config, name)
        assert choices is None or value is None or value in choices
    place = folder(config, "models")
    assert ".." not in place.relative_to(config.model_folder).parts and len(place.name) < 255
    assert to_dict(config).keys() == FIELDS.keys()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(flags())
def test_any_flags_are_a_config_or_one_line(words):
    try:
        command = parse(words, "run.py", registry.SPECS)
    except CommandError as error:
        assert str(error).strip()
        return
    check_config(command.config)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(TEXTS, max_size=5))
def test_any_words_end_in_status_2_or_a_config(words):
    """The whole program, where the words are wrong: they hardly ever are right."""
    if {"-h", "--help"} & set(words):
        return
    try:
        parse(words, "run.py", registry.SPECS)
    except CommandError:
        assert run.main(words) == 2


@settings(max_examples=30, deadline=None, derandomize=True)
@given(flags())
def test_the_programs_that_share_the_flags_take_them_alike(words):
    for program in (train_classifier, eval_disentanglement):
        try:
            command, own = parse(words, program.PROG, registry.SPECS, extra=program._flags)
        except CommandError:
            continue
        check_config(command.config)
        assert isinstance(own, argparse.Namespace) and Path(command.config.model_folder) is not None


# ---------------------------------------------------------------------------------------------------------------------
# Statistics files: read as what a covariance can be, or refused in one line


SPECIAL = st.sampled_from([0.0, -1.0, 1e-30, -1e-9, 1e300, float("nan"), float("inf"), -30.0])
DTYPES = st.sampled_from(["f2", "f4", "f8", "i8", "u1", "c16", "U3", "bool"])


@st.composite
def statistics_arrays(draw) -> dict[str, np.ndarray]:
    """The arrays of a sound file, a few of them changed: a value, the shape, the type, or gone."""
    rows = np.random.default_rng(draw(st.integers(0, 9))).standard_normal((6, 3))
    arrays = {"mu": rows.mean(0), "sigma": np.cov(rows, rowvar=False)}
    if draw(st.booleans()):
        arrays |= {"count": 6, "features": rows.astype("f4"), "size": [8, 8], "extractor": "classifier",
                   "resize": "none", "weights": "0" * 16}
    arrays = {name: np.array(value) for name, value in arrays.items()}
    for name in draw(st.lists(st.sampled_from(list(arrays)), max_size=2, unique=True)):
        array = arrays[name]
        change = draw(st.sampled_from(["value", "shape", "type", "gone"]))
        if change == "value" and array.dtype.kind == "f":
            array.flat[draw(st.integers(0, array.size - 1))] = draw(SPECIAL)
        elif change == "shape":
            arrays[name] = np.resize(array, draw(st.lists(st.integers(0, 4), max_size=3)))
        elif change == "type" and array.dtype.kind != "U":
            arrays[name] = array.astype(draw(DTYPES))
        elif change == "gone":
            del arrays[name]
    return arrays


@settings(max_examples=30, deadline=None, derandomize=True)
@given(statistics_arrays(), st.one_of(st.none(), st.tuples(st.floats(0, 1), st.integers(0, 255))))
def test_any_statistics_file_gives_a_distance_or_one_line(tmp_path_factory, arrays, damage):
    path = tmp_path_factory.getbasetemp() / "stats.npz"
    np.savez(path, **arrays)
    if damage:
        content = bytearray(path.read_bytes())
        content[int(damage[0] * (len(content) - 1))] = damage[1]
        path.write_bytes(content)
    try:
        found = fid.read_statistics(path)
    except CommandError as error:
        assert path.name in str(error)
        return
    dims = len(found.mean)
    distance = fid.frechet_distance(found.mean, found.covariance, np.zeros(dims), np.eye(dims))
    assert np.isfinite(distance) and distance > -1e-3 * (1 + abs(found.covariance).max())


# ---------------------------------------------------------------------------------------------------------------------
# Stored checkpoints

ODD = [None, True, -5, 0, 10**18, 2.5, float("nan"), float("inf"), "", "x", "../../..", "/x", "a\nb", b"\xff", [], [1],
       ["2"], {}, {"a": 1}, {1: 2}, (), torch.zeros(0), torch.full((2,), torch.nan), torch.zeros(1).expand(10**12),
       torch.zeros(2, dtype=torch.complex64), torch.zeros(3).to_sparse(), torch.zeros(2, device="meta"),
       torch.tensor(True)]


def places(value, at=()):
    """The path of every value of a nested record."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from places(inner, (*at, key))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(path of a sound checkpoint, its record, the places in it)"""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("stored"))
    try:
        path = tiny.checkpoint("--dataset line --kld_weight 0.1").absolute()
    finally:
        os.chdir(before)
    record = load_checkpoint(path)
    weights = [value for name, value in record["model"].items() if not name.endswith(".size")]  # a buffer
    record["optimizer"]["state"] = {
        number: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value)}
        for number, value in enumerate(weights)}
    return path, record, sorted(places(record), key=str)


def mutated(record: dict, where: tuple, change) -> dict:
    """A copy with the value at a place changed, or taken out where `change` is 'gone'."""
    made = copy.copy(record)
    inner = made
    for key in where[:-1]:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    if isinstance(change, str) and change == "gone":
        del inner[where[-1]]
    else:
        inner[where[-1]] = change
    return made


def outcome(path: Path, record: dict) -> str:
    """What becomes of a checkpoint that is opened to be used, and to train on: one line, or 'used'."""
    spoilt = path.with_name("model-2.pth")
    torch.save(record, spoilt)
    words = "--mode eval --dataset line --kld_weight 0.1 --unets_channels 4 --encoder_channels 4 --diffusion_steps 4"
    command = parse([*words.split(), "--a_dim", "2", "--device", "cpu", "--model_folder", str(path.parents[1])],
                    "run.py", registry.SPECS)
    try:
        trained = open_trained(command)
        training.Stepper(trained.model, trained.stored, trained.device).load(load_checkpoint(spoilt))
    except CommandError as error:
        return str(error)
    except UNREADABLE as error:  # what Run.resume turns into a line
        return f"no state: {type(error).__name__}"
    finally:
        spoilt.unlink()
    return "used"


@settings(max_examples=14, deadline=None, derandomize=True)
@given(st.data())
def test_a_stored_checkpoint_with_any_field_changed_is_used_or_one_line(stored, data):
    path, record, found = stored
    where = data.draw(st.sampled_from(found))
    change = data.draw(st.sampled_from([*ODD, "gone"]))
    said = outcome(path, mutated(record, where, change))
    assert said and len(said) < 600 and "weights_only" not in said
    assert [p.name for p in path.parent.iterdir()] == ["model-1.pth"]  # nothing was written


def test_an_unchanged_checkpoint_is_used(stored):
    path, record, _ = stored
    assert outcome(path, record) == "used"


# ---------------------------------------------------------------------------------------------------------------------
# Tables of labels

NAMES = [f"{part}/{k:03d}.png" for part in "ab" for k in range(3)]
TABLE = "file,kind,size\n" + "".join(f"{name},{'xy'[k % 2]},{k % 3}\n" for k, name in enumerate(NAMES))
SCRAPS = st.one_of(st.text(max_size=4), st.sampled_from([
    ",", ";", "\t", "\n", "\r\n", '"', "./", "\\", "/", "..", "NA", "nan", "0", "0.0", "1e999", "-0", "a/000.png",
    "000", "é", "\0", "\ufeff", "_", "1_0", "x" * 200_000, "9" * 400, "Unnamed: 0", "index"]))


@st.composite
def tables(draw) -> bytes:
    """A table of labels with a few scraps put in, cut out or written over; now and then in another encoding."""
    text = TABLE.replace(",", draw(st.sampled_from(",;\t|")))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(SCRAPS) + text[place + draw(st.integers(0, 12)):]
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])), errors="replace")
    cut = draw(st.integers(0, len(content)))
    return content[:cut] if draw(st.integers(0, 9)) == 0 else content


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables())
def test_any_table_of_labels_is_read_whole_or_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "labels.csv"
    path.write_bytes(content)
    try:
        numbers, details = labels.to_classes(path, labels.read_labels(path, NAMES))
    except CommandError as error:
        assert path.name in str(error)
        return
    assert len(numbers) == len(NAMES) and (numbers >= 0).all() and (numbers < details["factor_sizes"]).all()
    assert [len(names) for names in details["value_names"]] == list(details["factor_sizes"])
