"""3x3 convolutions of images, channels last, with 16 multiplications where the definition has 36: winograd.cpp.

    y = conv(x, weight) + bias + rest       padding 1, stride 1

In float32 as exact as the definition, within rounding; in bfloat16 the transformed tiles and weights are rounded once.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels.build import load

SOURCE = Path(__file__).with_suffix(".cpp")
WIDE = 16  # channels that winograd.cpp takes at once
SMALLEST = 4  # pixels a side: of a smaller image most of a tile's surroundings is padding
# Where it pays (docs/benchmark.md): with more kernels than so many for each tile of 2x2 pixels, transforming them takes
# longer than the multiplications that it saves; with more in all, the sixteen products leave the cache.
A_TILE, IN_ALL = 512, 2**17


class Convolve(torch.autograd.Function):
    """The operation with its derivative. x [B,C,H,W], rest [B,K,H,W] or None, both channels last."""

    @staticmethod
    def forward(ctx, kernel, x, weight, bias, rest):
        ctx.save_for_backward(x, weight)
        ctx.kernel, ctx.with_rest = kernel, rest is not None
        return kernel.forward(x, kernel.spread(weight, x.dtype), bias, rest)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[1]:
            dx = ctx.kernel.forward(dy, ctx.kernel.spread(weight, x.dtype, turned=True), None, None)
        if ctx.needs_input_grad[2]:
            dweight = ctx.kernel.backward(x, dy)
        if ctx.needs_input_grad[3]:
            dbias = dy.sum((0, 2, 3)).float()  # summed in float32; with `dtype` dy would be copied
        return None, dx, dweight, dbias, dy if ctx.with_rest else None


def convolve(kernel: Winograd, x: Tensor, weight: Tensor, bias: Tensor | None, rest: Tensor | None = None) -> Tensor:
    """y [B,K,H,W], channels last, of x [B,C,H,W]."""
    x = x.contiguous(memory_format=torch.channels_last)
    if rest is not None:
        rest = rest.to(x.dtype).contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled():
        return Convolve.apply(kernel, x, weight, bias, rest)
    return kernel.forward(x, kernel.spread(weight, x.dtype), bias, rest)


class _Task(ctypes.Structure):
    """winograd.cpp's Task."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "height", "width", "inside", "outside", "threads")]


class Winograd:
    """winograd.cpp, for float32 on any CPU, for bfloat16 where the processor multiplies it and has no matrix unit."""

    def __init__(self, library: ctypes.CDLL):
        kinds = {torch.float32: "f", torch.bfloat16: "b"}
        self._weights, self._forward, self._backward = {}, {}, {}
        for dtype, letter in kinds.items():
            if hasattr(library, f"forward_{letter}"):
                self._weights[dtype] = _function(library, f"weights_{letter}", 5)
                self._forward[dtype] = _function(library, f"forward_{letter}", 6)
                self._backward[dtype] = _function(library, f"backward_{letter}", 4)
        if torch.cpu._is_amx_tile_supported():
            self._forward.pop(torch.bfloat16, None)

    def __reduce__(self):
        """Copies and pickles are this machine's own kernel."""
        return _own_winograd, ()

    def serves(self, x: Tensor, weight: Tensor) -> bool:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return (x.device.type == "cpu" and x.dtype == dtype and dtype in self._forward
                and weight.dtype == torch.float32 and weight.shape[2] == 3 and min(x.shape[2:]) >= SMALLEST
                and weight.shape[:2].numel() <= min(A_TILE * _tiles(x), IN_ALL)
                and not (weight.shape[0] % WIDE or weight.shape[1] % WIDE))

    def spread(self, weight: Tensor, dtype: torch.dtype, turned: bool = False) -> Tensor:
        """G g G' of every kernel, [16, C, K] of weight [K,C,3,3], in bfloat16 in pairs along C.

        turned      of the convolution that is the derivative: half a turn, C and K exchanged
        """
        (outside, inside), (by_k, by_c, down, across) = weight.shape[:2], weight.stride()
        made = torch.empty(16, inside, outside, dtype=dtype)
        if turned:
            place, sizes = weight.data_ptr() + 4 * 2 * (down + across), (outside, inside)
            strides = (by_k, by_c, -down, -across)
        else:
            place, sizes, strides = weight.data_ptr(), (inside, outside), (by_c, by_k, down, across)
        self._weights[dtype](place, *sizes, (ctypes.c_int64 * 4)(*strides), made.data_ptr())
        return made

    def forward(self, x: Tensor, made: Tensor, bias: Tensor | None, rest: Tensor | None) -> Tensor:
        batch, inside, height, width = x.shape
        outside = made.numel() // (16 * inside)
        y = torch.empty((batch, outside, height, width), dtype=x.dtype, memory_format=torch.channels_last)
        task = _Task(batch, height, width, inside, outside, torch.get_num_threads())
        pointers = (None if value is None else value.data_ptr() for value in (x, made, bias, rest, y))
        self._forward[x.dtype](ctypes.addressof(task), *pointers)
        return y

    def backward(self, x: Tensor, dy: Tensor) -> Tensor:
        """The derivative by the weights, [K,C,3,3]."""
        batch, inside, height, width = x.shape
        outside = dy.shape[1]
        dw = torch.empty((outside, inside, 3, 3), memory_format=torch.channels_last)
        task = _Task(batch, height, width, inside, outside, torch.get_num_threads())
        self._backward[x.dtype](ctypes.addressof(task), x.data_ptr(), dy.data_ptr(), dw.data_ptr())
        return dw


def _tiles(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[2] // 2) * -(-x.shape[3] // 2)


def _function(library: ctypes.CDLL, name: str, count: int):
    function = getattr(library, name)
    function.argtypes, function.restype = [ctypes.c_void_p] * count, None
    return function


@functools.cache
def build_winograd() -> tuple[Winograd, float]:
    """The kernel of this machine and the seconds that it took to build (0: it was there). Raises NoCompiler."""
    return load(SOURCE, Winograd)


def _own_winograd() -> Winograd:
    return build_winograd()[0]
