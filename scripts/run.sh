#!/usr/bin/env bash
# Train a model, published: InfoDiffusion on CelebA with 256 latents (A_DIM=32 for the small one).
#   bash scripts/run.sh                         MODEL=vanilla bash scripts/run.sh         MODEL=vae A_DIM=32 bash scripts/run.sh
#   MODE=train_latent_ddim bash scripts/run.sh  (the diffusion over z, once the model is trained)
#   DATASET=digits A_DIM=32 STEPS=300 bash scripts/run.sh
# Called again, it resumes or says that the run is finished. Variables: common.sh. Arguments go to run.py.
. "$(dirname "$0")/common.sh"
case $MODEL in
    diff) size=(--batch_size 32 --save_epochs 5 --deterministic) ;;
    vae) size=(--batch_size 32 --save_epochs 5) ;;
    vanilla) size=(--batch_size 128 --save_epochs 10) ;;
esac
if [ "${MODE:=train}" = train_latent_ddim ]; then size=(--save_epochs 10 --deterministic); fi
run run.py --mode "$MODE" "${size[@]}" "${training[@]}" "$@"
