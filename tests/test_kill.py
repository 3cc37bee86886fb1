"""Runs that are interrupted and run again leave what an uninterrupted run leaves (tests/kill.py does it)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def interrupt(*words) -> dict:
    """What tests/kill.py prints: in a process without threads, since it forks."""
    done = subprocess.run([sys.executable, "kill.py", *map(str, words)], cwd=HERE, capture_output=True, text=True,
                          timeout=1500,
                          env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_twice_a_run_ends_bit_for_bit_the_same():
    result = interrupt("kill", 2)
    assert result["identical"], result


@pytest.mark.slow
def test_killed_twenty_times_a_run_ends_bit_for_bit_the_same():
    result = interrupt("kill", 20, 1)
    assert result["identical"], result
    assert len(set(result["steps"])) > 5, result  # the moments were different ones


@pytest.mark.slow
def test_signals_save_and_end_with_128_more_and_a_second_one_ends_at_once():
    result = interrupt("signals")
    assert result["statuses"] == [128 + 15, 128 + 2]
    assert result["said"] == 2 and 0 < result["steps"][0] < result["steps"][1]
    assert result["identical"], result
    assert result["second"] == 128 + 15 and result["second_seconds"] < 20


@pytest.mark.slow
def test_images_of_a_killed_eval_fid_are_completed_and_never_mixed():
    result = interrupt("images")
    assert result["identical"] and 0 < result["halfway"] < 40, result
    assert result["others"] == [f"{number:06d}.png" for number in range(8)] and result["mixed"] == 0
