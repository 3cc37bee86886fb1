#!/usr/bin/env bash
# Disentanglement scores of models/EXP/latents.npz: TAD for attributes, DCI for classes and factors.
#   bash scripts/eval_disentangle.sh           DATASET=digits A_DIM=32 bash scripts/eval_disentangle.sh --predictor fast
# Needs save_latent.sh. Variables: common.sh. Arguments go to eval_disentanglement.py.
. "$(dirname "$0")/common.sh"
run eval_disentanglement.py --sampling_number 16 --deterministic "${trained[@]}" "$@"
