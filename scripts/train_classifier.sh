#!/usr/bin/env bash
# What a classifier reads from z, from x_T (after latent_quality.sh) and from the pixels: results/EXP/classification.json.
#   bash scripts/train_classifier.sh           DATASET=digits A_DIM=32 bash scripts/train_classifier.sh --classifier mlp
# Needs save_latent.sh. Variables: common.sh. Arguments go to train_classifier.py.
. "$(dirname "$0")/common.sh"
run train_classifier.py "${trained[@]}" "$@"
