"""The U-Net of improved diffusion (Nichol & Dhariwal, ICML 2021), written so that its published weights load.

The names of its parameters are those of the published state dicts, so the containers are called `input_blocks`,
`in_layers` and so on as they are there. What the names do not show, and every weight depends on:

* the embedding of the time has its cosines first;
* in a residual block the second normalisation is modulated: norm(h) * (1 + scale) + shift;
* the 3C channels of an attention's `qkv` are ordered [head, (q, k, v), channel].
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 32
PERIOD = 10_000.0


def embed_time(times: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal features of a fractional time in 0..1000, cosines first: [B] -> [B, width], width even."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(PERIOD) / half))  # from 1 to nearly 1/PERIOD
    angles = times.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation in 32 groups, computed in float32 whatever the precision around it."""

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels)

    def forward(self, h):
        return super().forward(h.float()).to(h.dtype)


class ResidualBlock(nn.Module):
    """[B, c_in, H, W], time embedding [B, c_time] -> [B, c_out, H, W]; the time scales and shifts the second norm."""

    def __init__(self, c_in: int, c_out: int, c_time: int, dropout: float):
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm32(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_time, 2 * c_out))
        self.out_layers = nn.Sequential(
            GroupNorm32(c_out), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(c_out, c_out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, time):
        norm, *rest = self.out_layers
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, dim=1)
        h = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """Self-attention over the H*W positions, added to its input: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        positions = x.flatten(2)  # [B, C, H*W]
        # Heads are split off first; each then holds its own queries, keys and values.
        qkv = self.qkv(self.norm(positions)).unflatten(1, (self.heads, 3, -1))  # [B, heads, 3, C/heads, H*W]
        q, k, v = qkv.transpose(-1, -2).unbind(2)  # each [B, heads, H*W, C/heads]
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.proj_out(h.flatten(1, 2)).view_as(x)


class Downsample(nn.Module):
    """Halve the sides by a convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h):
        return self.op(h)


class Upsample(nn.Module):
    """Double the sides by repeating pixels, then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h):
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class Stage(nn.Sequential):
    """Layers in a row, of which the residual blocks are conditioned on time."""

    def forward(self, h, time):
        for layer in self:
            h = layer(h, time) if isinstance(layer, ResidualBlock) else layer(h)
        return h


class ImprovedUNet(nn.Module):
    """x [B, in_channels, H, W], time [B] in 0..1000 (fractions allowed) -> [B, out_channels, H, W].

    channels     width of the first level; a multiple of 32
    multipliers  width of every level over `channels`; each level but the last halves the sides on its way down
    blocks       residual blocks a level going down; one more going up
    attention    the levels (0 is full resolution) whose residual blocks are followed by attention
    heads        of every attention
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        multipliers: list[int],
        blocks: int,
        attention: list[int],
        heads: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        c_time, self.channels = 4 * channels, channels
        self.time_embed = nn.Sequential(nn.Linear(channels, c_time), nn.SiLU(), nn.Linear(c_time, c_time))

        def stage(level: int, c_in: int, c_out: int) -> list[nn.Module]:
            block = ResidualBlock(c_in, c_out, c_time, dropout)
            return [block, Attention(c_out, heads)] if level in attention else [block]

        widths = [channels * multiplier for multiplier in multipliers]
        width = channels
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels, channels, 3, padding=1))])
        skips = [channels]  # the width of what each input block leaves for the way up
        for level, c_out in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(Stage(*stage(level, width, c_out)))
                width = c_out
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage(Downsample(width)))
                skips.append(width)

        self.middle_block = Stage(
            ResidualBlock(width, width, c_time, dropout),
            Attention(width, heads),
            ResidualBlock(width, width, c_time, dropout),
        )

        self.output_blocks = nn.ModuleList()
        for level, c_out in reversed(list(enumerate(widths))):
            for block in range(blocks + 1):
                layers = stage(level, width + skips.pop(), c_out)
                width = c_out
                if level > 0 and block == blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(Stage(*layers))

        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x, time):
        embedding = self.time_embed(embed_time(time, self.channels))
        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h)
