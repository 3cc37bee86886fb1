"""Group normalisation, modulation, SiLU and dropout as one operation over x [B, HW, C], pixel by pixel in memory.

    u = a x + t    with a = rstd weight scale,  t = (bias - mean rstd weight) scale + shift     [B, C]
    y = keep(place) u sigmoid(u) / (1 - p)

One pass forward and two backward, where torch's own operations make four and more. Kept for backward: x, a, t, mean
and rstd; u and the mask are made again. The mask is a hash of (seed, row, channel), so that it takes no memory.

The mathematics stands twice: in PyTorch (`Plain`, which torch.compile turns into kernels for a GPU, and which tests
compare with torch's own group_norm), and in fused.cpp (`Kernel`, for a CPU: compiled once a machine, in seconds).
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels.build import NoCompiler, load

SOURCE = Path(__file__).with_suffix(".cpp")


class Fused(torch.autograd.Function):
    """The operation with its derivative. x [B, HW, C]; weight, bias [C]; scale, shift [B, C] or None; seed [1]."""

    @staticmethod
    def forward(ctx, kernel, x, weight, bias, scale, shift, seed, groups, eps, silu, p, half):
        y, kept = kernel.forward(x, weight, bias, scale, shift, seed, groups, eps, silu, p, half)
        ctx.save_for_backward(x, weight, bias, scale, seed, *kept)
        ctx.kernel, ctx.groups, ctx.silu, ctx.p = kernel, groups, silu, p
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, bias, scale, seed, *kept = ctx.saved_tensors
        dx, along, sums = ctx.kernel.backward(x, dy.contiguous(), seed, kept, ctx.groups, ctx.silu, ctx.p)
        if scale is None:
            return None, dx, along.sum(0), sums.sum(0), *[None] * 8
        dweight, dbias = (along * scale).sum(0), (sums * scale).sum(0)
        return None, dx, dweight, dbias, along * weight + sums * bias, sums, *[None] * 6


def fused(kernel, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *,
          groups: int, eps: float, silu: bool, p: float = 0.0) -> Tensor:
    """y [B,C,H,W], channels last, of x [B,C,H,W]; under autocast in its half precision. p: the dropout's share."""
    rows = x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # a view where x is channels last
    half = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    seed = None
    if p > 0:
        seed = torch.randint(-(2**31), 2**31, (1,), dtype=torch.int32, device=x.device)
    options = (seed, groups, eps, silu, p, half)
    if torch.is_grad_enabled():
        y = Fused.apply(kernel, rows, weight, bias, scale, shift, *options)
    else:
        y, _ = kernel.forward(rows, weight, bias, scale, shift, *options)
    return y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics in PyTorch


def _mix(h: Tensor) -> Tensor:
    """Wellons' lowbias32 without its last shift, of int32, whose products wrap around."""
    h = (h ^ ((h >> 16) & 0xFFFF)) * 0x7FEB352D
    return (h ^ ((h >> 15) & 0x1FFFF)) * -0x7B935975  # 0x846ca68b


def keep(seed: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """[B, HW, C]: 0 for a share p of the places, 1 / (1 - p) for the others."""
    batch, pixels, channels = shape
    row = torch.arange(batch * pixels, dtype=torch.int32, device=seed.device)
    channel = torch.arange(channels, dtype=torch.int32, device=seed.device) * -0x61C88647  # 0x9e3779b9
    h = _mix(_mix(seed ^ _mix(row)).reshape(batch, pixels, 1) + channel)
    return (h >= _threshold(p)).float() / (1 - p)


def _threshold(p: float) -> int:
    return int(p * 2**32) - 2**31


def plain_forward(x, weight, bias, scale, shift, seed, groups, eps, silu, p, half):
    """-> y [B, HW, C] in the dtype `half`, (a, t, mean, rstd) each [B, C]."""
    batch, _, channels = x.shape
    first = x[:, :1].float()
    d = x.float() - first  # about the first pixel: no cancellation in the squares
    mean_c, square = d.mean(1), d.square().mean(1)
    var_c, mean_c = square - mean_c.square(), mean_c + first[:, 0]
    by_group = mean_c.reshape(batch, groups, -1)
    mean = by_group.mean(2, keepdim=True)
    var = (var_c.reshape(by_group.shape) + (by_group - mean).square()).mean(2, keepdim=True)
    mean = mean.expand(by_group.shape).reshape(batch, channels)
    rstd = (var.clamp(min=0) + eps).rsqrt().expand(by_group.shape).reshape(batch, channels)
    a, t = rstd * weight, bias - mean * rstd * weight
    if scale is not None:
        a, t = a * scale, t * scale + shift
    y = a[:, None] * x.float() + t[:, None]
    if silu:
        y = y * torch.sigmoid(y)
    if seed is not None:
        y = y * keep(seed, x.shape, p)
    return y.to(half), (a, t, mean, rstd)


def plain_backward(x, dy, seed, kept, groups, silu, p):
    """-> dx [B, HW, C]; sums over the pixels of du (x - mean) rstd and of du, each [B, C]."""
    a, t, mean, rstd = kept
    du, x32 = dy.float(), x.float()
    if silu:
        u = a[:, None] * x32 + t[:, None]
        s = torch.sigmoid(u)
        du = du * (s * (1 + u * (1 - s)))
    if seed is not None:
        du = du * keep(seed, x.shape, p)
    sums, along = du.sum(1), (du * (x32 - mean[:, None])).sum(1) * rstd

    def over_group(values):  # [B, C] -> its mean over a group's entries, for each channel
        values = values.reshape(len(x), groups, -1)
        return (values.mean(2, keepdim=True) / x.shape[1]).expand(values.shape).reshape(a.shape)

    k1 = -over_group(a * along) * rstd
    k2 = -over_group(a * sums) - mean * k1
    return (a[:, None] * du + k1[:, None] * x32 + k2[:, None]).to(x.dtype), along, sums


class Plain:
    """The mathematics in PyTorch: as it stands, or two functions made of it."""

    def __init__(self, forward=plain_forward, backward=plain_backward):
        self.forward, self.backward = forward, backward

    def serves(self, x: Tensor) -> bool:
        return x.dtype in (torch.float32, torch.bfloat16, torch.float16)


class Compiled(Plain):
    """Of functions that cannot be pickled: copies and pickles are this process's own."""

    def __reduce__(self):
        return compiled, ()


@functools.cache
def compiled() -> Compiled:
    """The same through torch.compile, once for each shape (and kept on disk by it). Raises NoCompiler."""
    from torch.utils._triton import has_triton

    if torch.cuda.is_available() and not has_triton():
        raise NoCompiler("no Triton")
    limit = torch._dynamo.config
    limit.recompile_limit = max(256, limit.recompile_limit)  # one entry for each shape
    return Compiled(*(torch.compile(f, dynamic=False, fullgraph=True) for f in (plain_forward, plain_backward)))


# ---------------------------------------------------------------------------------------------------------------------
# The kernel for a CPU


class _Task(ctypes.Structure):
    """fused.cpp's Task."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "pixels", "channels", "groups", "row", "threads")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale", "shift", "a", "t", "mean", "rstd", "seed")),
        ("eps", ctypes.c_float), ("factor", ctypes.c_float), ("threshold", ctypes.c_int32), ("silu", ctypes.c_int32),
    ]


_NAMES = {(torch.float32, torch.float32): "ff", (torch.float32, torch.bfloat16): "fb",
          (torch.bfloat16, torch.bfloat16): "bb"}


class Kernel:
    """fused.cpp, for float32 and bfloat16 on a CPU."""

    def __init__(self, library: ctypes.CDLL):
        def functions(name):
            made = {kinds: getattr(library, f"{name}_{letters}") for kinds, letters in _NAMES.items()}
            for function in made.values():
                function.argtypes = [ctypes.c_void_p] * (3 if name == "forward" else 6)
                function.restype = None
            return made

        self._forward, self._backward = functions("forward"), functions("backward")

    def __reduce__(self):
        """Copies and pickles are this machine's own kernel."""
        return _own_kernel, ()

    def serves(self, x: Tensor) -> bool:
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return x.device.type == "cpu" and (x.dtype, half) in _NAMES

    def forward(self, x, weight, bias, scale, shift, seed, groups, eps, silu, p, half):
        kept = x.new_empty(4, len(x), x.shape[2], dtype=torch.float32)
        y = torch.empty_like(x, dtype=half)
        if scale is not None and not (scale.stride() == shift.stride() and scale.stride(1) == 1):
            scale, shift = scale.contiguous(), shift.contiguous()
        task = _task(x, seed, kept, groups, silu, p)
        task.weight, task.bias, task.eps = weight.data_ptr(), bias.data_ptr(), eps
        if scale is not None:
            task.scale, task.shift, task.row = scale.data_ptr(), shift.data_ptr(), scale.stride(0)
        self._forward[x.dtype, half](ctypes.addressof(task), x.data_ptr(), y.data_ptr())
        return y, (kept,)

    def backward(self, x, dy, seed, kept, groups, silu, p):
        sums = x.new_empty(2, len(x), x.shape[2], dtype=torch.float32)
        dx, (along, level) = torch.empty_like(x), sums
        task = _task(x, seed, kept[0], groups, silu, p)
        self._backward[x.dtype, dy.dtype](ctypes.addressof(task), x.data_ptr(), dy.data_ptr(), dx.data_ptr(),
                                          along.data_ptr(), level.data_ptr())
        return dx, along, level


def _task(x: Tensor, seed: Tensor | None, kept: Tensor, groups: int, silu: bool, p: float) -> _Task:
    task = _Task(*x.shape, groups, 0, torch.get_num_threads())
    start, stride = kept.data_ptr(), 4 * kept.stride(0)
    task.a, task.t, task.mean, task.rstd = (start + i * stride for i in range(4))
    task.silu = silu
    if seed is not None:
        task.seed, task.threshold, task.factor = seed.data_ptr(), _threshold(p), 1 / (1 - p)
    return task


@functools.cache
def build_kernel() -> tuple[Kernel, float]:
    """The kernel of this machine and the seconds that it took to build (0: it was there). Raises NoCompiler."""
    return load(SOURCE, Kernel)


def _own_kernel() -> Kernel:
    return build_kernel()[0]
