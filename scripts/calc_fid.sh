#!/usr/bin/env bash
# FID and KID of the images that eval_fid.sh drew, against the statistics of gen_fid.sh; adds to results/EXP/fid.json.
#   bash scripts/calc_fid.sh                   LATENT= bash scripts/calc_fid.sh       (of two-phase sampling)
#   DATASET=digits A_DIM=32 bash scripts/calc_fid.sh
# Variables: common.sh. Arguments go to calc_fid.py.
. "$(dirname "$0")/common.sh"
: "${LATENT=1}"
images=$(folder imgs)
if [ -n "$LATENT" ] && [ "$MODEL" = diff ]; then leaf=eval-fid-latent; else leaf=eval-fid-fast; fi
run calc_fid.py "$DATASET" "./$images/$leaf" --extractor "$EXTRACTOR" "$@"
