"""Convolutions of small images with many channels, channels last, as one matrix product each way.

    y = conv(x, weight) + bias + rest = columns(x) W + bias + rest       a row a pixel, in columns what a kernel sees

That is a product of few rows with many weights, which torch's own convolutions, made for large images, bring into an
order of their own at every call. Here they stay as they lie. Most is gained by the derivative by the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Where it pays (docs/benchmark.md): weights for every pixel of the result, from which on the derivative by the weights
# is faster so, and from which on all three are.
MANY, MOST = 2**10, 2**13
LARGEST = 2**23  # entries of the columns, nine times as many as the image's


class Product(torch.autograd.Function):
    """The operation with its derivative. x [B,C,H,W], weight [K,C,s,s], rest [B,K,H',W'] or None, all channels last."""

    @staticmethod
    def forward(ctx, x, weight, bias, rest, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.with_rest = stride, rest is not None
        return convolution(x, weight, bias, rest, stride)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        rows = dy.permute(0, 2, 3, 1).flatten(0, 2)  # [B H' W', K]
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = derivative_by_images(dy, x, weight, ctx.stride)
        if ctx.needs_input_grad[1]:
            dweight = rows.t() @ columns(x, weight.shape[2], ctx.stride)
            dweight = dweight.unflatten(1, (*weight.shape[2:], weight.shape[1])).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            dbias = rows.sum(0)
        return dx, dweight, dbias, dy if ctx.with_rest else None, None


def serves(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether the operation is for such an input, and pays."""
    return (x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and weights_a_pixel(x, weight, stride) >= (MANY if torch.is_grad_enabled() else MOST)
            and x.numel() // stride**2 * weight[0, 0].numel() <= LARGEST)


def weights_a_pixel(x: Tensor, weight: Tensor, stride: int) -> float:
    return weight.numel() * stride**2 / (x.shape[0] * x.shape[2] * x.shape[3])


def convolve_by_product(x: Tensor, weight: Tensor, bias: Tensor, rest: Tensor | None, stride: int) -> Tensor:
    """y [B,K,H',W'], channels last, of x [B,C,H,W]; padding s // 2."""
    x = x.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled():
        return Product.apply(x, weight, bias, rest, stride)
    return convolution(x, weight, bias, rest, stride)


def convolution(x: Tensor, weight: Tensor, bias: Tensor, rest: Tensor | None, stride: int) -> Tensor:
    if weights_a_pixel(x, weight, stride) < MOST:
        y = F.conv2d(x, weight, bias, stride, weight.shape[2] // 2)
    else:
        y = torch.addmm(bias, columns(x, weight.shape[2], stride), flat(weight).t())
        sizes = [len(x), *((n - 1) // stride + 1 for n in x.shape[2:])]
        y = y.unflatten(0, sizes).permute(0, 3, 1, 2)
    return y if rest is None else y.add_(rest)


def derivative_by_images(dy: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    side = weight.shape[2]
    if weights_a_pixel(x, weight, stride) >= MOST:
        return from_columns(dy.permute(0, 2, 3, 1).flatten(0, 2) @ flat(weight), x, side, stride)
    places = [stride] * 2, [side // 2] * 2, [1] * 2
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *places, False, [0, 0], 1, [True, False, False])[0]


def flat(weight: Tensor) -> Tensor:
    """[K,C,s,s] -> [K, s s C], a view where it lies channels last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def columns(x: Tensor, side: int, stride: int) -> Tensor:
    """The side x side pixels around every pixel of the result. [B,C,H,W] -> [B H' W', side side C]"""
    pad = side // 2
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
    seen = rows.unfold(1, side, stride).unfold(2, side, stride)  # [B, H', W', C, side, side]
    return seen.permute(0, 1, 2, 4, 5, 3).flatten(0, 2).flatten(1)


def from_columns(values: Tensor, x: Tensor, side: int, stride: int) -> Tensor:
    """The sum of `columns` back onto the pixels that they show: its derivative. [B H' W', side side C] -> [B,C,H,W]"""
    batch, channels, height, width = x.shape
    pad, down, across = side // 2, (height - 1) // stride + 1, (width - 1) // stride + 1
    values = values.view(batch, down, across, side, side, channels)
    total = values.new_zeros(batch, height + 2 * pad, width + 2 * pad, channels)
    for i in range(side):
        for j in range(side):
            total[:, i : i + stride * down : stride, j : j + stride * across : stride] += values[:, :, :, i, j]
    image = total[:, pad : pad + height, pad : pad + width].permute(0, 3, 1, 2)
    return image.contiguous(memory_format=torch.channels_last)
