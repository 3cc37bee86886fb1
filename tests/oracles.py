"""Ideal denoisers in closed form (math of the suite's exact tests), all following the denoiser contract."""

import math

import torch


class MixtureDenoiser:
    """The optimal denoiser of sum_k pi_k N(m_k, S_k), and its exact density. Dimensions flattened inside.

    weights [k], means [k, d], covariances [k, d, d]
    """

    def __init__(self, weights, means, covariances):
        self.weights = torch.as_tensor(weights).double()
        self.means = torch.as_tensor(means).double()
        self.covariances = torch.as_tensor(covariances).double()
        self.variances, self.basis = torch.linalg.eigh(self.covariances)  # [k, d], [k, d, d]

    def __call__(self, x_noisy, logsnr, z=None):
        a = logsnr.double()[:, None]
        signal, noise = torch.sigmoid(a), torch.sigmoid(-a)
        rotated = self._rotate(x_noisy.double().flatten(1)[:, None] - signal.sqrt()[:, :, None] * self.means)
        spread = signal[:, :, None] * self.variances + noise[:, :, None]  # [B, k, d]
        share = torch.softmax(self.weights.log() - 0.5 * (rotated**2 / spread + spread.log()).sum(-1), dim=1)
        whitened = torch.einsum("bkr,kdr->bkd", rotated / spread, self.basis)
        eps = noise.sqrt() * torch.einsum("bk,bkd->bd", share, whitened)
        return eps.reshape(x_noisy.shape).to(x_noisy.dtype)

    def _rotate(self, residual):
        return torch.einsum("bkd,kdr->bkr", residual, self.basis)

    def nll_nats(self, x):
        rotated = self._rotate(x.double().flatten(1)[:, None] - self.means)
        logs = -0.5 * (rotated**2 / self.variances + (2 * math.pi * self.variances).log()).sum(-1)
        return -torch.logsumexp(self.weights.log() + logs, dim=1)

    def sample(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        factors = torch.linalg.cholesky(self.covariances)[component]
        return (self.means[component] + (factors @ noise[:, :, None])[:, :, 0]).float()


class GaussianDenoiser(MixtureDenoiser):
    """The optimal denoiser of N(mean, covariance)."""

    def __init__(self, mean, covariance):
        super().__init__([1.0], torch.as_tensor(mean)[None], torch.as_tensor(covariance)[None])


class FiniteSetDenoiser:
    """The optimal denoiser of points [n, *shape] drawn with probabilities [n] (uniform where not given)."""

    def __init__(self, points, weights=None):
        self.points = points.double()
        self.weights = torch.full((len(points),), 1 / len(points)) if weights is None else torch.as_tensor(weights)

    def __call__(self, x_noisy, logsnr, z=None):
        a = logsnr.double()[:, None]
        rows, points = x_noisy.double().flatten(1), self.points.flatten(1)
        # Distances over the noise's variance: |x_noisy - sqrt(s(a)) m|^2 / s(-a)
        distance = torch.cdist(rows / torch.sigmoid(a).sqrt(), points).square() * a.exp()
        share = torch.softmax(self.weights.double().log() - 0.5 * distance, dim=1)
        eps = (rows - torch.sigmoid(a).sqrt() * (share @ points)) / torch.sigmoid(-a).sqrt()
        return eps.reshape(x_noisy.shape).to(x_noisy.dtype)

    def nll_nats(self, index):
        return -self.weights.double().log()[index]

    def sample(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        index = torch.multinomial(self.weights.double(), count, replacement=True, generator=generator)
        return index, self.points[index].float()


class PairDenoiser:
    """The optimal denoiser of x, with and without z, where (x, z) is normal with zero mean and joint covariance.

    The first n of the dimensions are x.
    """

    def __init__(self, covariance, n):
        self.covariance, self.n = covariance.double(), n
        xx, xz, zz = covariance[:n, :n].double(), covariance[:n, n:].double(), covariance[n:, n:].double()
        self.gain = torch.linalg.solve(zz, xz.T).T  # E[x | z] = gain z
        self.marginal = GaussianDenoiser(torch.zeros(n), xx)
        self.residual = GaussianDenoiser(torch.zeros(n), xx - self.gain @ xz.T)
        self.exact_mi = 0.5 * (torch.logdet(xx) + torch.logdet(zz) - torch.logdet(self.covariance)).item()

    def __call__(self, x_noisy, logsnr, z=None):
        if z is None:
            return self.marginal(x_noisy, logsnr)
        known = torch.sigmoid(logsnr.double()).sqrt()[:, None] * (z.double() @ self.gain.T)
        return self.residual(x_noisy.double() - known, logsnr).to(x_noisy.dtype)

    def sample(self, count, seed):
        both = GaussianDenoiser(torch.zeros(len(self.covariance)), self.covariance).sample(count, seed)
        return both[:, : self.n], both[:, self.n :]
