#!/usr/bin/env bash
# Draw the images for FID, published: 10,000 with z from the latent diffusion (MODE=train_latent_ddim bash scripts/run.sh).
#   bash scripts/eval_fid.sh                   LATENT= bash scripts/eval_fid.sh       (two-phase: needs MODEL=vanilla trained)
#   DATASET=digits A_DIM=32 STEPS=300 IMAGES=500 SAMPLING="--sampler dpmpp --sample_steps 20" bash scripts/eval_fid.sh
# Called again, it draws what is missing. Variables: common.sh; SAMPLING: flags of the sampler. Arguments go to run.py.
. "$(dirname "$0")/common.sh"
: "${LATENT=1}" "${IMAGES:=10000}"
phases=(--split_step 500 ${LATENT:+--is_latent})
if [ "$MODEL" != diff ]; then phases=(); fi
run run.py --mode eval_fid "${phases[@]}" --batch_size 256 --sampling_number "$IMAGES" "${trained[@]}" $SAMPLING "$@"
