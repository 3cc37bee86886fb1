"""--compile: how a model's networks work out normalisation and what follows it, or torch.compile of them."""

from __future__ import annotations

import functools

import torch
from torch import nn

import distributed
from config import Config
from kernels.build import NoCompiler
from kernels.fused import Kernel, Plain, build_kernel, compiled
from kernels.winograd import Winograd, build_winograd
from modules import GroupNorm, use_kernels

HALVES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def half_of(precision: str, device: torch.device) -> torch.dtype | None:
    """The half precision of --precision on this device, None for float32."""
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if bf16 else "fp32"
    return HALVES[precision]


def compile_networks(model: nn.Module, config: Config, device: torch.device) -> None:
    """What --compile asks for, in place: names and values of the weights stay."""
    if device.type == "cpu":
        say_if_emulated(config.precision)
    networks = [part for name in ("network", "encoder", "decoder") if (part := getattr(model, name, None)) is not None]
    if config.compile == "full":
        for part in networks:
            part.compile()
    elif config.compile != "off" and any(isinstance(m, GroupNorm) for part in networks for m in part.modules()):
        kernels = kernels_for(device.type, half_of(config.precision, device))
        for part in networks:
            use_kernels(part, *kernels)


@functools.cache
def say_if_emulated(precision: str) -> None:
    """A line where a CPU has no instructions for a half precision, so that every product of it is converted."""
    if HALVES.get(precision) and not getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported")():
        distributed.say(f"precision: this processor has no instructions for {precision}; training and sampling take "
                        f"several times as long as with --precision fp32")


@functools.cache
def kernels_for(device: str, half: torch.dtype | None) -> tuple[Kernel | Plain | None, Winograd | None]:
    """What does normalisation, modulation, SiLU and dropout in one on a device, and what does 3x3 convolutions.

    None, saying why, where nothing is written for the device or can be compiled.
    """
    try:
        if device == "cuda":
            return compiled(), None
        if device == "cpu" and half != torch.float16:
            (kernel, seconds), (winograd, more) = build_kernel(), build_winograd()
            if seconds + more:
                distributed.say(f"compile: kernels built in {seconds + more:.1f} s, and kept for later runs")
            return kernel, winograd
        reason = f"nothing is written for {device} in this precision"
    except NoCompiler as error:
        reason = str(error)
    distributed.say(f"compile: {reason}; torch's own operations serve, more slowly")
    return None, None
