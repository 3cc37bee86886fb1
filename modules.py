"""Networks: tensors to tensors, independent of what they are trained for.

    UNet         (x [B,C,H,W], logsnr [B], z [B,z_dim]) -> [B,C',H,W]; the denoiser, and without time and z the encoder
    Decoder      z [B,a_dim] -> [B,C,H,W], for the VAE family
    LatentMLP    (z [B,a_dim], logsnr [B]) -> [B,a_dim], the denoiser of latent diffusion
    PointMLP     (x [B,n], logsnr [B], z) -> [B,n], the denoiser of points
    Classifier   x [B,C,H,W] -> logits [B,classes], whose features serve the offline Frechet distance
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import products
from kernels.fused import fused
from kernels.winograd import convolve

Modulation = tuple[Tensor, Tensor]  # (scale, shift), each [B, C]
SLOWEST, FASTEST = 0.25, 4.0  # waves of a point's coordinates, radians a unit
SMALL = 2**16  # pixels times keys up to which two matrix products are faster attention on a CPU than torch's own


class GroupNorm(nn.GroupNorm):
    """Group normalisation with what follows it: modulation, SiLU, dropout.

    kernel      None for torch's own operations one after another; or what does them all in one (`fused`)
    """

    def __init__(self, groups: int, channels: int, silu: bool):
        super().__init__(groups, channels)
        self.silu, self.kernel = silu, None

    def forward(self, x: Tensor, modulation: Modulation | None = None, dropout: float = 0.0) -> Tensor:
        """h = norm(x) scale + shift, SiLU of it, and in training a share `dropout` of it zero. [B,C,H,W] -> the same"""
        scale, shift = (None, None) if modulation is None else (part.expand(len(x), -1) for part in modulation)
        dropout = dropout if self.training else 0.0
        if self.kernel is not None and self.kernel.serves(x):
            return fused(self.kernel, x, self.weight, self.bias, scale, shift, groups=self.num_groups, eps=self.eps,
                         silu=self.silu, p=dropout)
        h = super().forward(x)
        if scale is not None:
            h = h * scale[:, :, None, None] + shift[:, :, None, None]  # addcmul: half as fast on a CPU
        h = F.silu(h) if self.silu else h
        return F.dropout(h, dropout) if dropout else h


def group_norm(channels: int, silu: bool = True) -> GroupNorm:
    """GroupNorm 32 from 64 channels on; below, groups of four.

    A group of one channel, as 32 groups of 32 channels are, is instance norm: it removes every channel's mean.
    """
    groups = 32 if channels >= 64 else max(1, channels // 4)
    return GroupNorm(math.gcd(groups, channels), channels, silu)


class Convolution(nn.Conv2d):
    """A convolution of odd side that keeps the image's size, over the stride, and a sum with `rest`.

    winograd    None for torch's own convolution; or what does both in one, with fewer multiplications (`convolve`),
                where it pays, and one matrix product does them for small images
    """

    def __init__(self, inside: int, outside: int, side: int = 3, stride: int = 1):
        super().__init__(inside, outside, side, stride, side // 2)
        self.winograd = None

    def forward(self, x: Tensor, rest: Tensor | None = None) -> Tensor:
        """[B,C,H,W], rest [B,K,H,W] -> [B,K,H,W]"""
        if self.winograd is not None:
            stride = self.stride[0]
            if stride == 1 and self.winograd.serves(x, self.weight):
                return convolve(self.winograd, x, self.weight, self.bias, rest)
            if products.serves(x, self.weight, stride):
                return products.convolve_by_product(x, self.weight, self.bias, rest, stride)
        y = super().forward(x)
        return y if rest is None else y + rest


def use_kernels(network: nn.Module, kernel, winograd=None) -> None:
    """Let every normalisation of a network do its work by `kernel`, channels last; None: by torch's own operations.

    winograd    what does the 3x3 convolutions, or None
    Values and names of the weights stay.
    """
    layout = torch.contiguous_format if kernel is None else torch.channels_last
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.kernel = kernel
        elif isinstance(module, Convolution):
            module.winograd = winograd
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


def last_layers(channels: int, outside: int) -> nn.Sequential:
    """Normalisation, SiLU (in the normalisation: Identity keeps its number in old checkpoints) and a convolution."""
    return nn.Sequential(group_norm(channels), nn.Identity(), Convolution(channels, outside))


def zero(module: nn.Module) -> nn.Module:
    """Start a layer at zero, so that the block around it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoids(value: Tensor, features: int, slowest: float = 1e-2, fastest: float = 4.0) -> Tensor:
    """Sines and cosines of `value` at geometric frequencies, radians a unit. [...] -> [..., features]

    The default range resolves a quarter of a unit of log-SNR and does not repeat within a thousand.
    """
    count = features // 2
    frequency = torch.exp(torch.linspace(math.log(slowest), math.log(fastest), count, device=value.device))
    angle = value.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """log-SNR [B] -> [B, width]. `fastest` is the highest frequency, radians a unit of log-SNR."""

    def __init__(self, features: int, width: int, fastest: float = 4.0):
        super().__init__()
        self.features, self.fastest = features + features % 2, fastest
        self.layers = nn.Sequential(nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, logsnr: Tensor) -> Tensor:
        return self.layers(sinusoids(logsnr, self.features, fastest=self.fastest))


class LatentEmbedding(nn.Module):
    """z [B, z_dim] -> [B, width] for AdaNorm, or tokens [B, z_dim, width] for cross-attention.

    With `null`, a learned embedding stands for "no z": for every sample where z is None, for some by `keep` [B] bool.
    """

    def __init__(self, z_dim: int, width: int, tokens: bool, null: bool):
        super().__init__()
        self.tokens = tokens
        if tokens:  # EncDiff (Yang et al. 2024), sec. 3.2: every scalar its own concept token
            self.first = nn.Parameter(torch.randn(z_dim, width))
            self.bias = nn.Parameter(torch.randn(z_dim, width))
        else:
            self.first = nn.Linear(z_dim, width)
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(width, width))
        shape = (z_dim, width) if tokens else (width,)
        self.null = nn.Parameter(torch.randn(shape) * 0.02) if null else None
        self.level = None

    def add_level(self) -> None:
        """Take one entry of z more from now on, the last, of which nothing is made yet: its weights start at zero."""
        self.level = nn.Parameter(torch.zeros_like(self.last[1].bias))

    def forward(self, z: Tensor | None, keep: Tensor | None, batch: int) -> Tensor:
        if z is None:
            return self.null.expand(batch, *self.null.shape)
        if self.level is not None:
            z, level = z[:, :-1], z[:, -1:] * self.level  # [B, width]
        first = z[:, :, None] * self.first + self.bias if self.tokens else self.first(z)
        if self.level is not None:
            first = first + (level[:, None] if self.tokens else level)
        embedding = self.last(first)
        if keep is None:
            return embedding
        return torch.where(keep.reshape(-1, *[1] * (embedding.dim() - 1)), embedding, self.null.to(embedding.dtype))


class Attention(nn.Module):
    """Single-head self-attention over the pixels, or cross-attention to tokens [B, T, token_width]."""

    def __init__(self, channels: int, token_width: int = 0):
        super().__init__()
        self.norm = group_norm(channels, silu=False)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(token_width or channels, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        pixels = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # [B, HW, C]
        key, value = self.key_value(pixels if tokens is None else tokens).chunk(2, dim=-1)
        mixed = attend(self.query(pixels), key, value)
        return x + self.out(mixed).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one head: softmax(q k^T / sqrt(C)) v. [B, N, C], [B, T, C], [B, T, C] -> [B, N, C]"""
    if query.device.type == "cpu" and query.shape[1] * key.shape[1] <= SMALL:
        return torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(1, 2), -1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class ResBlock(nn.Module):
    """Two convolutions around a residual; between them AdaNorm by the time and, where there is one, by z.

    h = norm(h) (1 + scale_t) + shift_t, then h (1 + scale_z) + shift_z (InfoDiffusion, sec. 3.3), then SiLU, dropout.
    """

    def __init__(self, inside: int, outside: int, dropout: float, time_width: int = 0, z_width: int = 0):
        super().__init__()
        self.norm1, self.norm2 = group_norm(inside), group_norm(outside)
        self.conv1 = Convolution(inside, outside)
        self.conv2 = zero(Convolution(outside, outside))
        self.by_time = nn.Linear(time_width, 2 * outside) if time_width else None
        self.by_z = nn.Linear(z_width, 2 * outside) if z_width else None
        self.dropout, self.outside = dropout, outside
        self.skip = Convolution(inside, outside, side=1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, modulation: Modulation | None) -> Tensor:
        h = self.norm2(self.conv1(self.norm1(x)), modulation, self.dropout)
        return self.conv2(h, self.skip(x))


def modulations(blocks: Sequence[ResBlock], time: Tensor | None, z: Tensor | None) -> list[Modulation | None]:
    """What time and z make of each block's normalised h: the two modulations composed, where they are small.

    All layers `by_time` are one matrix product, and all layers `by_z`.
    """
    made: dict[ResBlock, Modulation] = {}
    for by_z in (False, True):
        group = [block for block in blocks if block.by_time is not None and (block.by_z is not None) == by_z]
        if not group:
            continue
        scale, shift = product([block.by_time for block in group], time)
        scale = 1 + scale
        if by_z:
            scale_z, shift_z = product([block.by_z for block in group], z)
            scale, shift = scale * (1 + scale_z), shift * (1 + scale_z) + shift_z
        widths = [block.outside for block in group]
        made |= zip(group, zip(scale.split(widths, 1), shift.split(widths, 1), strict=True), strict=True)
    return [made.get(block) for block in blocks]


def product(layers: Sequence[nn.Linear], value: Tensor) -> tuple[Tensor, Tensor]:
    """Every layer's (scale, shift) of one value [B, width], side by side: two [B, channels of all], float32."""
    halves = [zip(*(kind.chunk(2) for kind in (layer.weight, layer.bias)), strict=True) for layer in layers]
    scales, shifts = zip(*halves, strict=True)  # of each layer (weight, bias)
    weight, bias = (torch.cat(parts) for parts in zip(*scales, *shifts, strict=True))
    return F.linear(value, weight, bias).float().chunk(2, dim=1)


class Stage(nn.Module):
    """A residual block with what follows it: self-attention, cross-attention to z."""

    def __init__(self, inside: int, outside: int, dropout: float, attention: bool, time_width: int, z_width: int,
                 tokens: bool):
        super().__init__()
        self.block = ResBlock(inside, outside, dropout, time_width, 0 if tokens else z_width)
        self.attention = Attention(outside) if attention else None
        self.cross = Attention(outside, z_width) if tokens and z_width else None

    def forward(self, x: Tensor, modulation: Modulation | None = None, z: Tensor | None = None) -> Tensor:
        x = self.block(x, modulation)
        if self.attention is not None:
            x = self.attention(x)
        return x if self.cross is None else self.cross(x, z)


class UNet(nn.Module):
    """The published U-Net: two residual blocks a level going down, three going up, attention at the third level.

    channels, multipliers   width of the first level, and each level's multiple of it; a level halves the size
    blocks                  residual blocks a level going down; one more going up
    attention               the levels with self-attention, the first being 0; the middle always has it
    time                    conditioned on log-SNR (the denoiser) or not (the encoder)
    z_dim                   dimensions of z, or 0
    null                    learn an embedding for "no z"
    conditioning            'adanorm' or 'crossattn'
    bottleneck              z acts in the middle only
    """

    def __init__(self, inside: int, outside: int, channels: int, multipliers: tuple[int, ...], dropout: float, *,
                 blocks: int = 2, attention: tuple[int, ...] = (2,), time: bool = True, z_dim: int = 0,
                 null: bool = False, conditioning: str = "adanorm", bottleneck: bool = False):
        super().__init__()
        width = 4 * channels
        tokens = {"adanorm": False, "crossattn": True}[conditioning]
        self.z_dim = z_dim
        self.embed_time = TimeEmbedding(channels, width) if time else None
        self.embed_z = LatentEmbedding(z_dim, width, tokens, null) if z_dim else None
        time_width, z_width = width if time else 0, width if z_dim else 0

        def stage(inside, outside, level=None):
            acts = 0 if bottleneck and level is not None else z_width
            return Stage(inside, outside, dropout, level is None or level in attention, time_width, acts, tokens)

        widths = [channels * m for m in multipliers]
        self.first = Convolution(inside, channels)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, current = [channels], channels
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(current, wide, level))
                skips.append(wide)
                current = wide
            if level < len(widths) - 1:
                self.down.append(Convolution(current, current, stride=2))
                skips.append(current)
        self.middle = nn.ModuleList([stage(current, current), Stage(current, current, dropout, False, time_width,
                                                                    z_width, tokens)])
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(current + skips.pop(), wide, level))
                current = wide
            if level > 0:
                self.up.append(Convolution(current, current))
        self.last = last_layers(current, outside)
        if time:
            zero(self.last[-1])

    def forward(self, x: Tensor, logsnr: Tensor | None = None, z: Tensor | None = None,
                keep: Tensor | None = None) -> Tensor:
        """x [B,C,H,W], logsnr [B], z [B,z_dim] or None, keep [B] bool (where False, z counts as None)."""
        time = None if self.embed_time is None else self.embed_time(logsnr)
        condition = None if self.embed_z is None else self.embed_z(z, keep, len(x))
        if condition is not None and not self.embed_z.tokens:
            condition = F.silu(condition)
        stages = [layer for layer in self.layers() if isinstance(layer, Stage)]
        modulation = iter(modulations([stage.block for stage in stages], time, condition))
        with torch.autocast(x.device.type, enabled=False):  # half precision would round the noise away at high log-SNR
            # a copy, since of one channel `contiguous` changes nothing and the result would be channels first
            layout = torch.preserve_format if self.last[0].kernel is None else torch.channels_last
            x = self.first(x.float().clone(memory_format=layout))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        skips = [x]
        for layer in self.down:
            x = layer(x, next(modulation), condition) if isinstance(layer, Stage) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, next(modulation), condition)
        for layer in self.up:
            if isinstance(layer, Stage):
                x = layer(torch.cat([x, skips.pop()], dim=1), next(modulation), condition)
            else:
                x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.last(x)

    def layers(self) -> Iterable[nn.Module]:
        """Of all levels, in the order of their work."""
        return (*self.down, *self.middle, *self.up)


class Encoder(nn.Module):
    """x [B,C,H,W] -> [B, outputs]: the U-Net down and up to one channel, then linear (InfoDiffusion, app. C)."""

    def __init__(self, inside: int, size: int, outputs: int, channels: int, multipliers: tuple[int, ...],
                 dropout: float, *, blocks: int = 2, attention: tuple[int, ...] = (2,)):
        super().__init__()
        self.unet = UNet(inside, 1, channels, multipliers, dropout, blocks=blocks, attention=attention, time=False)
        self.head = nn.Linear(size * size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unet(x).flatten(1))


class Decoder(nn.Module):
    """z [B, a_dim] -> [B,C,H,W]: the ascending half of a U-Net, without skips."""

    def __init__(self, outside: int, size: int, a_dim: int, channels: int, multipliers: tuple[int, ...],
                 dropout: float, *, blocks: int = 2, attention: tuple[int, ...] = (2,)):
        super().__init__()
        widths = [channels * m for m in multipliers]
        self.shape = (widths[-1], size >> (len(widths) - 1), size >> (len(widths) - 1))
        self.first = nn.Linear(a_dim, math.prod(self.shape))
        self.layers, current = nn.ModuleList(), widths[-1]
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                self.layers.append(Stage(current, wide, dropout, level in attention, 0, 0, False))
                current = wide
            if level > 0:
                self.layers.append(Convolution(current, current))
        self.last = last_layers(current, outside)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).reshape(-1, *self.shape)
        for layer in self.layers:
            x = layer(x) if isinstance(layer, Stage) else layer(F.interpolate(x, scale_factor=2.0))
        return self.last(x)


class LatentMLP(nn.Module):
    """The denoiser of latents (DiffAE, Preechakul et al. 2022, app. A.1): an MLP that sees its input at every layer."""

    def __init__(self, a_dim: int, layers: int = 10, time_features: int = 64):
        super().__init__()
        width = 4 * a_dim
        self.embed_time = TimeEmbedding(time_features, time_features)
        sizes = [a_dim] + [width + a_dim] * (layers - 1)
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes[:-1])
        self.by_time = nn.ModuleList(nn.Linear(time_features, width) for _ in sizes[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sizes[:-1])
        self.last = nn.Linear(sizes[-1], a_dim)

    def forward(self, x: Tensor, logsnr: Tensor, z: Tensor | None = None) -> Tensor:
        time, h = self.embed_time(logsnr), x
        for layer, by_time, norm in zip(self.layers, self.by_time, self.norms, strict=True):
            h = F.silu(norm(layer(h) * (1 + by_time(time))))
            h = torch.cat([h, x], dim=1)
        return self.last(h)


class PointMLP(nn.Module):
    """The denoiser of points: sinusoidal features of every coordinate and of log-SNR, residual hidden layers.

    size    of each wave: 1. Checkpoints without it divide the waves of frequency f > 1 by f^2, as all did once, and
            were slower on fine shapes
    """

    def __init__(self, dim: int, hidden: int, z_dim: int = 0, null: bool = False, layers: int = 3, features: int = 8):
        super().__init__()
        width = hidden // 2  # features of time and of z
        self.z_dim, self.features = z_dim, features
        self.embed_time = TimeEmbedding(32, width, fastest=1.0)
        self.embed_z = LatentEmbedding(z_dim, width, tokens=False, null=null) if z_dim else None
        self.register_buffer("size", torch.ones(features))  # of each wave
        self.first = nn.Linear(dim * (1 + features), hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.by_time = nn.ModuleList(nn.Linear(width, 2 * hidden) for _ in range(layers))
        self.last = zero(nn.Linear(hidden, dim))

    def forward(self, x: Tensor, logsnr: Tensor, z: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        time = self.embed_time(logsnr)
        if self.embed_z is not None:
            time = time + self.embed_z(z, keep, len(x))
        waves = sinusoids(x, self.features, SLOWEST, FASTEST) * self.size
        h = self.first(torch.cat([x, waves.flatten(1)], dim=1))
        for layer, by_time in zip(self.layers, self.by_time, strict=True):
            scale, shift = by_time(time).chunk(2, dim=1)
            h = h + layer(F.silu(torch.addcmul(shift, h, 1 + scale)))
        return self.last(F.silu(h))

    def _load_from_state_dict(self, state, prefix, *rest) -> None:
        if f"{prefix}size" not in state:
            frequency = torch.exp(torch.linspace(math.log(SLOWEST), math.log(FASTEST), self.features // 2))
            state[f"{prefix}size"] = frequency.clamp(min=1).square().reciprocal().repeat(2)
        super()._load_from_state_dict(state, prefix, *rest)


def mlp(inside: int, hidden: int, outside: int) -> nn.Sequential:
    """Encoder or decoder of points: two hidden layers."""
    return nn.Sequential(nn.Linear(inside, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
                         nn.Linear(hidden, outside))


class Classifier(nn.Module):
    """A small image classifier. `features` [B, 4 width] are what the offline Frechet distance compares."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 32):
        super().__init__()
        layers, inside = [], channels
        for level, outside in enumerate((width, 2 * width, 4 * width)):
            stride = 2 if level and size >= 8 else 1
            layers += [Convolution(inside, outside, stride=stride), group_norm(outside), nn.Identity(),
                       Convolution(outside, outside), group_norm(outside), nn.Identity()]
            inside = outside
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inside, classes)

    def features(self, x: Tensor) -> Tensor:
        """[B,C,H,W] in [-1, 1] -> [B, 4 width]."""
        return self.layers(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
