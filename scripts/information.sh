#!/usr/bin/env bash
# How much a latent knows: the interval of I(x; z), and what the denoiser uses of it (docs/information.md).
#   bash scripts/information.sh known      mvn in 2, 3 and 5 dimensions, where I(x; z) is known exactly
#   bash scripts/information.sh digits     InfoDiffusion and a diffusion autoencoder, noise tau on their z
#   bash scripts/information.sh weights    digits, growing --mmd_weight and shrinking --kld_weight, and one figure of it
#   bash scripts/information.sh seeds      digits, what MMD and KL do to the interval, over three seeds
#   bash scripts/information.sh steps      shapes3d, interval and usable information as a denoiser is trained, a figure
# Variables: EPOCHS=80 (digits)  PAIRS="1e-2_0 1e-4_10" (kld_mmd)  SEEDS="0 1 2"  MODELS="diff_0_0.1 vae_0_0.1"
#            (family_kld_mmd)  STEPS="500 1000 2000 4000"
#            PYTHON= DRY= (python.sh)
#            MI_STEPS=600 (steps that fit the denoiser conditioned on tau)
set -euo pipefail
. "$(dirname "$0")/python.sh"
: "${EPOCHS:=80}"
model() { run run.py --model "$@"; }
digits=(--dataset digits --a_dim 32 --z_dropout 0.1)
train=(--mode train --epochs "$EPOCHS" --save_epochs "$EPOCHS" --learning_rate 5e-4 --ema_decay 0.999)

case ${1:-} in
known)
    for n in 2 3 5; do
        flags=(--dataset mvn --a_dim "$n" --loss itd --z_dropout 0.5)
        model diff --mode train "${flags[@]}" --epochs 120 --batch_size 512 --learning_rate 1e-3 --ema_decay 0.999 \
            --save_epochs 120
        model diff --mode mutual_info "${flags[@]}" --num_images 10000 --npoints 32
    done
    ;;
digits)
    for weight in 0.1 0; do
        model diff "${train[@]}" "${digits[@]}" --mmd_weight "$weight"
        model diff --mode mutual_info "${digits[@]}" --mmd_weight "$weight" --num_images 500 --npoints 32 \
            --learning_rate 5e-4 --mi_steps "${MI_STEPS:-600}"
        model diff --mode nll "${digits[@]}" --mmd_weight "$weight" --num_images 300 --npoints 32
    done
    model vanilla "${train[@]}" --dataset digits
    model vanilla --mode nll --dataset digits --num_images 300 --npoints 32
    ;;
weights)
    for pair in ${PAIRS:-1e-2_0 1e-3_0 1e-4_0 1e-5_0 1e-4_1 1e-4_10}; do
        kld=${pair%_*} mmd=${pair#*_}
        model diff "${train[@]}" "${digits[@]}" --kld_weight "$kld" --mmd_weight "$mmd"
        model diff --mode mutual_info "${digits[@]}" --kld_weight "$kld" --mmd_weight "$mmd" --num_images 500 \
            --npoints 32
    done
    plot() { run scripts.plot_results "${@:2}" --output "results/by_$1" --by "$1"; }
    plot kld_weight results/digits_32d_*kld_0.1zdrop
    plot mmd_weight results/digits_32d_0.0001kld_*0.1zdrop
    ;;
seeds)
    for seed in ${SEEDS:-0 1 2}; do
        for model in ${MODELS:-diff_0_0 diff_0_0.1 diff_0_1 vae_0_0.1 diff_1e-4_0 diff_1e-2_0}; do
            IFS=_ read -r family kld mmd <<<"$model"
            flags=(--dataset digits --a_dim 16 --unets_channels 8 --encoder_channels 8 --epochs 15
                --kld_weight "$kld" --mmd_weight "$mmd" --r_seed "$seed" --tag "seed$seed")
            model "$family" --mode train "${flags[@]}" --learning_rate 2e-3 --ema_decay 0.99
            model "$family" --mode mutual_info --mi_steps 0 "${flags[@]}"
        done
    done
    ;;
steps)
    flags=(--dataset shapes3d --input_size 8 --z_from floor_hue shape --unets_channels 16 --z_dropout 0.1)
    for steps in ${STEPS:-500 1000 2000 4000}; do
        model diff --mode train "${flags[@]}" --max_steps "$steps" --learning_rate 1e-3 \
            --lr_schedule constant
        model diff --mode mutual_info "${flags[@]}" --num_images 500 --npoints 32 --result_folder "results/steps-$steps"
    done
    run scripts.plot_results results/steps-* --output results/by_step --by step
    ;;
*)
    echo "usage: bash scripts/information.sh known|digits|weights|seeds|steps" >&2
    exit 2
    ;;
esac
