"""Random numbers that are a function of their place: (seed, sample index, step), and nothing else.

So sample 17 of seed 3 is the same picture whatever the batch size or the number of processes, and a training step that
is run again after an interruption draws what it drew before.
"""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import torch

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): the odd number nearest 2^64 / golden ratio
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as torch's signed int64 writes it."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_xor(bits, shift: int):
    """bits ^ (bits >> shift), the shift being a logical one: torch's int64 shift copies the sign."""
    return (bits >> shift).bitwise_and_((1 << (64 - shift)) - 1).bitwise_xor_(bits)


def _mix(bits):
    """SplitMix64's finaliser: a bijection of 64 bits that makes neighbours look independent. For tensors of int64."""
    bits = _shift_xor(bits, 30) * _signed(_MULTIPLIERS[0])
    bits = _shift_xor(bits, 27) * _signed(_MULTIPLIERS[1])
    return _shift_xor(bits, 31)


def _mix_number(value: int) -> int:
    """The same of one number, on the host: a tensor made from it would have to be copied to the device."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        value = ((value ^ (value >> shift)) * multiplier) & _MASK
    return value ^ (value >> 31)


class Rng:
    """Random numbers for a batch of numbered samples, drawn from (seed, index, step, stream) and nothing else.

    seed    the experiment's seed
    index   [B] integers: which sample (of the run, of the global batch) each row is
    step    the training or sampling step
    """

    def __init__(self, seed: int, index: torch.Tensor, step: int = 0):
        self.seed, self.index, self.step = seed, index.long(), step

    def at(self, step: int) -> Rng:
        """The same samples at another step."""
        return Rng(self.seed, self.index, step)

    def fork(self, name: str) -> Rng:
        """The same samples' noise for another purpose: independent of this one, stream by stream."""
        return Rng((self.seed * 1_000_003 + zlib.crc32(name.encode())) & 0x7FFFFFFF, self.index, self.step)

    def _place(self, stream: str) -> int:
        """64 bits of (seed, step, stream)."""
        place = (zlib.crc32(stream.encode()) + (self.seed << 32)) & _MASK
        return _mix_number((_mix_number(place) + self.step) & _MASK)

    def _bits(self, stream: str, count: int) -> torch.Tensor:
        """[B, count] int64, uniform over all bit patterns."""
        key = _mix(self.index + _signed(self._place(stream)))  # [B]
        counter = torch.arange(1, count + 1, device=self.index.device) * _signed(_GAMMA)
        return _mix(key[:, None] + counter)

    def uniform(self, stream: str, *shape: int) -> torch.Tensor:
        """[B, *shape] float32 in the open interval (0, 1)."""
        bits = self._bits(stream, int(np.prod(shape, dtype=int)))
        unit = (((bits >> 41) & 0x7FFFFF).float() + 0.5) * 2.0**-23
        return unit.reshape(len(self.index), *shape)

    def spread(self, stream: str) -> torch.Tensor:
        """[B] in (0, 1), evenly spread over consecutive indices: a golden-ratio rotation of one uniform draw a step.

        Each value alone is uniform; a batch of them estimates an average over the unit interval with less variance.
        """
        bits = _mix_number((_mix_number(self._place(stream)) + _GAMMA) & _MASK)  # what `uniform` draws for index 0
        start = ((bits >> 41 & 0x7FFFFF) + 0.5) * 2.0**-23
        return ((start + self.index.double() * 0.6180339887498949) % 1).clamp(2.0**-24, 1 - 2.0**-24).float()

    def normal(self, stream: str, *shape: int) -> torch.Tensor:
        """[B, *shape] float32, standard normal, by Box and Muller's transform."""
        count = int(np.prod(shape, dtype=int))
        bits = self._bits(stream, (count + 1) // 2)
        radius = (-2.0 * torch.log((((bits >> 40) & 0xFFFFFF).float() + 0.5) * 2.0**-24)).sqrt()
        angle = (bits & 0xFFFFFF).float() * (2.0 * torch.pi * 2.0**-24)
        pair = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)  # [B, pairs, 2]
        return pair.flatten(1)[:, :count].reshape(len(self.index), *shape)


def seed_dropout(seed: int, step: int, rank: int = 0) -> None:
    """Make torch's global generators, which dropout alone uses, a function of the step. For the training loop only."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    value = int.from_bytes(digest[:7], "little")
    torch.default_generator.manual_seed(value)  # torch.manual_seed takes milliseconds where CUDA is not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
