"""Images and their two latents, z and x_T: there and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sampling import SAMPLERS, invert, steps_of
from utils import CommandError

INVERSION_STEPS = 50  # of the sampler that inverts


class Autoencoder:
    """x -> (z, x_T) -> x by deterministic ddim or heun and its inversion. The VAE has no x_T, plain diffusion no z.

    Raises CommandError for more steps than the model's schedule has.
    """

    def __init__(self, model: nn.Module, steps: int | None = None, spacing: str = "time", sampler: str = "ddim"):
        self.model, self.sampler = model, sampler
        self.has_z, self.has_noise = hasattr(model, "latent"), hasattr(model, "denoise")
        if self.has_noise:
            self.grid = model.grid(steps_of(model, steps, INVERSION_STEPS), spacing)

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """[B, *shape] -> z [B, a_dim] and x_T [B, *shape], None where the model has none.

        Raises CommandError where z comes with the data.
        """
        if self.has_z and self.model.encoder is None:
            raise CommandError("z of this model comes with the data: there is no encoder that finds that of an image")
        z = self.model.encode(x) if self.has_z else None
        return z, self.invert(x, z) if self.has_noise else None

    @torch.no_grad()
    def invert(self, x: Tensor, z: Tensor | None) -> Tensor:
        """The x_T from which `decode` arrives at x [B, *shape], given z."""
        return invert(self.model.denoise, x, self.grid, z, self.sampler)

    @torch.no_grad()
    def decode(self, z: Tensor | None, x_T: Tensor | None) -> Tensor:
        if not self.has_noise:
            return self.model.decode(z)
        return SAMPLERS[self.sampler](self.model.denoise, x_T, self.grid, z)

    def between(self, a: Tensor, b: Tensor, points: int) -> Tensor:
        """[points, *shape] from image a to image b [1, *shape]: z on the line, x_T on the great circle."""
        (z_a, noise_a), (z_b, noise_b) = self.encode(a), self.encode(b)
        share = torch.linspace(0, 1, points, device=a.device)
        z = None if z_a is None else torch.lerp(z_a, z_b, share[:, None])
        x_T = None if noise_a is None else slerp(noise_a, noise_b, share)
        return self.decode(z, x_T)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Points [K, *shape] on the great circle from a to b [1, *shape] (Shoemake 1985), which keeps the norm of noise."""
    cosine = F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).clamp(-1 + 1e-9, 1 - 1e-9)
    angle = torch.arccos(cosine)
    weight_a = torch.sin((1 - share) * angle) / torch.sin(angle)
    weight_b = torch.sin(share * angle) / torch.sin(angle)
    shape = (-1, *[1] * (a.dim() - 1))
    return (weight_a.reshape(shape) * a + weight_b.reshape(shape) * b).to(a.dtype)
