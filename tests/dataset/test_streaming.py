"""A process that reads ahead and is killed: one line, and only where its batch is waited for."""

import os
import signal

import pytest
from made import pictures, save

from dataset import registry
from utils import RunError


def test_a_killed_reader_is_one_line_and_no_handler_is_left(tmp_path, monkeypatch):
    for k in range(40):
        save(tmp_path / f"{k}.png", pictures(1, 8, 8, 3)[0])
    monkeypatch.setattr(registry, "HELD_COSTLY", 0)
    train = registry.load("folder", "train", root=tmp_path, size=8)
    reader, before = os.getpid(), signal.getsignal(signal.SIGCHLD)
    plain = type(train).raw

    def raw(self, indices):
        if os.getpid() != reader and 7 in indices.tolist():
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, indices)

    monkeypatch.setattr(type(train), "raw", raw)
    read = []
    with pytest.raises(RunError, match=r"^[^\n]*killed[^\n]*--num_workers 0[^\n]*$"):
        for indices, _ in registry.stream(train, [[k] for k in range(12)], num_workers=1):
            read.append(indices.item())
            assert signal.getsignal(signal.SIGCHLD) is before
    assert read == list(range(len(read))) and len(read) <= 7
