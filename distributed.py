"""Many processes: ranks and collectives. Without torchrun there is one process and every function is the identity."""

from __future__ import annotations

import contextlib
import datetime
import os
import time

import torch
import torch.distributed as dist
from torch import Tensor

LIMIT = datetime.timedelta(minutes=10)  # that a process is waited for where all are at the same step
PARTING = 1.0  # seconds
GRACE = 20.0  # seconds that the others are waited for after a signal: the launcher kills after 30
signalled: float | None = None  # when a signal asked this process to stop
_store = None  # shared by all processes; to wait without a limit
_met = 0  # how often they have met at `barrier`


def start(device: torch.device) -> None:
    """Join the process group that torchrun announces in the environment, if it does."""
    global _store, _met
    if "RANK" in os.environ and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, number, size = next(dist.rendezvous("env://", timeout=LIMIT))
        _store, _met = dist.PrefixStore("waiting", store), 0
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=number, world_size=size,
                                timeout=LIMIT)


def part_ways() -> None:
    """After work that ended well: the first process, which may serve the store, gives the others time to leave it."""
    if not dist.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # the others may be gone
        if not is_main():
            _store.add("left", 1)
        end = time.monotonic() + PARTING
        while is_main() and _store.add("left", 0) < world() - 1 and time.monotonic() < end:
            time.sleep(0.01)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def world() -> int:
    """How many processes share the work: 1 until they have met."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def say(text: str) -> None:
    """Print for a person to read, once."""
    if is_main():
        print(text, flush=True)


def is_lost(error: RuntimeError) -> bool:
    """Whether it tells that another process is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def barrier() -> None:
    """Wait for all processes, however long the work of one takes: by looking, and in no collective with a limit."""
    global _met
    if not dist.is_initialized():
        return
    _met += 1
    arrived, pause = _store.add(f"{_met}", 1), 0.001
    while arrived < world():
        if signalled is not None and time.monotonic() - signalled > GRACE:
            raise dist.DistError("another process has not come")  # it is gone, or has long work to do
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
        arrived = _store.add(f"{_met}", 0)


def agree(*numbers: int) -> list[int]:
    """The largest of all processes' numbers, each by itself; they meet on the CPU, so that no GPU waits."""
    if not dist.is_initialized():
        return [int(number) for number in numbers]
    largest = torch.tensor([int(number) for number in numbers])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, in rank order, gradient included. [B, ...] -> [world B, ...]; equal B everywhere."""
    if not dist.is_initialized():
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


def part(count: int) -> range:
    """This process's part of `count` rows: an unbroken one, so that the parts in rank order are the rows in order."""
    return range(count * rank() // world(), count * (rank() + 1) // world())


def gather_objects(value) -> list:
    """Every process's (picklable) value, in rank order, on every process."""
    if not dist.is_initialized():
        return [value]
    barrier()  # some may have had more to do
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def total(x: Tensor) -> Tensor:
    """Sum over processes of a tensor without gradient."""
    if dist.is_initialized():
        x = x.clone()
        dist.all_reduce(x)
    return x


def mean(x: Tensor) -> Tensor:
    """Average over processes of a tensor without gradient."""
    return total(x) / world()
