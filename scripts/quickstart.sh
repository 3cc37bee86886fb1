#!/usr/bin/env bash
# From nothing to a trained, sampled and measured InfoDiffusion on real handwritten digits, on a processor:
#   bash scripts/quickstart.sh             (EPOCHS=80 bash scripts/quickstart.sh: twice the training)
# Makes .venv where there is none. Files go to ./runs/quickstart; called again, it goes on where it stopped.
set -euo pipefail
. "$(dirname "$0")/setup.sh" requirements.txt
: "${EPOCHS:=40}"
mkdir -p runs/quickstart
cd runs/quickstart

model=(--model diff --dataset digits --a_dim 32 --mmd_weight 0.01 --z_dropout 0.1)
quick() { run run.py "${model[@]}" "$@"; }

export OMP_NUM_THREADS=1 # pictures of 8x8 pixels gain nothing from a second thread: two programs run side by side

encoded() {
    quick --mode plot_latent
    quick --mode save_latent
    run train_classifier.py "${model[@]}"
    quick --mode mutual_info --mi_steps 0
}

quick --mode train --epochs "$EPOCHS" --save_epochs "$EPOCHS" --learning_rate 1e-3 --dropout 0 --ema_decay 0.999
encoded > encoded.log 2>&1 &
classified=$!
quick --mode train_latent_ddim --epochs 100 --save_epochs 100 --learning_rate 1e-3 --ema_decay 0.999
quick --mode eval --is_latent --sampling_number 64 --sampler dpmpp --sample_steps 20
quick --mode latent_quality --num_images 64 --sampling_number 2 --sample_steps 20
wait $classified || { cat encoded.log >&2; exit 1; }
python_here -m scripts.quickstart_table
python_here -m scripts.report digits_32d_0.01mmd_0.1zdrop --sample_steps 10 --output "$PWD/report.html"
