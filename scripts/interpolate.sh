#!/usr/bin/env bash
# Ten points from one image to another, in z and x_T; the ends are their reconstructions.
#   IMG="0 1" bash scripts/interpolate.sh      (numbers in the test split, or two image files)
#   DATASET=digits A_DIM=32 STEPS=300 bash scripts/interpolate.sh
# Variables: common.sh. Arguments go to run.py.
. "$(dirname "$0")/common.sh"
run run.py --mode interpolate --img_id ${IMG:-0 1} --deterministic "${trained[@]}" $INVERSION "$@"
