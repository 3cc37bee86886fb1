#!/usr/bin/env bash
# Traversal: image IMG of the test split with each latent in turn set to eleven values from -1.5 to 1.5.
#   A_DIM=32 EPOCHS=20 bash scripts/disentangle.sh      (the published call)
#   DATASET=digits A_DIM=32 STEPS=300 IMG=3 bash scripts/disentangle.sh
# Variables: common.sh. Arguments go to run.py.
. "$(dirname "$0")/common.sh"
run run.py --mode disentangle --img_id "${IMG:-0}" --deterministic "${trained[@]}" $INVERSION "$@"
