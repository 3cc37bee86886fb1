#!/usr/bin/env bash
# Encode a split (the test split, unless --split says otherwise) into models/EXP/latents.npz, with its labels.
#   bash scripts/save_latent.sh                DATASET=digits A_DIM=32 STEPS=300 bash scripts/save_latent.sh
# Variables: common.sh. Arguments go to run.py.
. "$(dirname "$0")/common.sh"
case $DATASET in celeba | ffhq) metric=tad ;; *) metric=dci ;; esac
run run.py --mode save_latent --disent_metric "$metric" --deterministic "${trained[@]}" "$@"
