#!/usr/bin/env bash
# How well z and x_T give held-out images back: errors from inferred and from 16 random x_T, pictures of both.
#   bash scripts/latent_quality.sh             DATASET=digits A_DIM=32 STEPS=300 bash scripts/latent_quality.sh --num_images 100
# Variables: common.sh. Arguments go to run.py.
. "$(dirname "$0")/common.sh"
run run.py --mode latent_quality --sampling_number 16 --deterministic "${trained[@]}" $INVERSION "$@"
