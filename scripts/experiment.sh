#!/usr/bin/env bash
# A whole experiment, from training to one table (results/summary.md and .json):
#   bash scripts/experiment.sh celeba
#   SEEDS="0 1 2" bash scripts/experiment.sh digits    (each seed a run; the table has the mean ± half its 95 % interval)
# On digits, in minutes, on a processor:
#   A_DIM=32 STEPS=300 IMAGES=500 SAMPLING="--sampler dpmpp --sample_steps 20" bash scripts/experiment.sh digits
# Called again after an interruption, it goes on: finished trainings and drawn images are kept.
# Variables: common.sh; IMAGES=10000 to draw for FID, with the flags SAMPLING; PREDICTOR=gbt of DCI (fast: seconds).
if [ $# -ne 1 ]; then
    echo "usage: bash scripts/experiment.sh DATASET" >&2
    exit 2
fi
export DATASET=$1 MODEL=diff
scripts=$(dirname "$0")
. "$scripts/common.sh"
export PYTHON EXTRACTOR

chain() {
    bash "$scripts/run.sh"
    MODEL=vanilla bash "$scripts/run.sh"
    bash "$scripts/save_latent.sh"
    MODE=train_latent_ddim bash "$scripts/run.sh"
    for latent in 1 ""; do
        LATENT=$latent bash "$scripts/eval_fid.sh"
        LATENT=$latent bash "$scripts/calc_fid.sh"
    done
    bash "$scripts/latent_quality.sh"
    if [ "$labels" != none ]; then
        bash "$scripts/train_classifier.sh"
        bash "$scripts/eval_disentangle.sh" --predictor "${PREDICTOR:-gbt}"
    fi
    bash "$scripts/interpolate.sh"
    bash "$scripts/disentangle.sh"
    run run.py --mode plot_latent "${trained[@]}"
}

main() { # a function is read whole, so that this file may change while it runs
    bash "$scripts/eval_fid.sh" --dry_run # a wrong flag is found now, and not after hours
    labels=$(python_here -c "from dataset import registry; print(registry.SPECS['$DATASET'].labels)")
    bash "$scripts/gen_fid.sh"
    folders=()
    name=$TAG
    for seed in ${SEEDS:-once}; do
        if [ "$seed" != once ]; then
            export SEED=$seed TAG=${name:+$name-}seed$seed
            . "$scripts/common.sh"
        fi
        chain
        folders+=("$(folder results)")
    done
    run scripts.summary "${folders[@]}"
}

main
exit
