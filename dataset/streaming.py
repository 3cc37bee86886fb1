"""Batches of a split for lists of indices, in the caller's order, from memory or from processes that read ahead."""

from __future__ import annotations

import signal
import threading
import warnings
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from dataset.base import Dataset
from utils import CommandError, RunError, first_line


def stream(dataset: Dataset, index_lists, device="cpu", num_workers: int = 0):
    """Yield (indices int64 [B] on the CPU, raw [B, *shape] on `device`) for each list of indices, in the given order.

    A split that is held is copied to the device once and indexed there; another is read by `num_workers` processes,
    ahead of the caller. Nothing is drawn from a global generator. Raises CommandError for a file that cannot be read,
    RunError where a process that reads is killed.
    """
    pinned = torch.device(device).type == "cuda"
    if dataset.images is not None:
        held = dataset.resident(device)
        for indices in index_lists:
            indices = torch.as_tensor(indices, dtype=torch.int64)
            places = indices.pin_memory().to(device, non_blocking=True) if pinned else indices
            yield indices, held[places]
        return
    loading = {"sampler": index_lists, "num_workers": num_workers, "pin_memory": pinned}
    for indices, raw in _watched(_Lists(dataset), loading):
        if isinstance(raw, CommandError):
            raise raw
        yield indices, raw.to(device, non_blocking=pinned)


def _watched(lists: _Lists, loading: dict):
    """The batches of a DataLoader. A lost process is noticed where its batch is waited for, and nowhere else.

    torch's own handler of SIGCHLD would raise in the middle of whatever runs: an optimiser step half done.
    """
    handled = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if handled else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # torch's advice where cores are few
        batches = iter(DataLoader(lists, batch_size=None, generator=torch.Generator(), **loading))
    if handled:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, EOFError, OSError) as error:  # what it had read goes with it: pipes that end
            if not loading["num_workers"] or str(error).startswith("Caught"):
                raise
            raise RunError("a process that reads images was killed (no memory left?); --num_workers 0 reads without "
                           f"any: {first_line(error)}") from None
        yield batch


@dataclass
class _Lists:
    """A map from a list of indices to a batch. An error travels as a value: a worker would wrap it in a traceback."""

    dataset: Dataset

    def __getitem__(self, indices):
        indices = torch.as_tensor(indices, dtype=torch.int64)
        try:
            return indices, self.dataset.raw(indices)
        except CommandError as error:
            return indices, error
