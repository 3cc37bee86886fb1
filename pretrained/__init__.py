"""Networks that were trained elsewhere, behind the suite's denoiser contract."""
