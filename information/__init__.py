"""Integrals of a denoiser's error over log-SNR: likelihood and mutual information. No network, no files."""
