#!/usr/bin/env bash
# Information-theoretic diffusion on points whose density is known: train a plain MLP by --loss itd, then measure its
# likelihood on 20,000 held-out points, paired with the exact one.
#   bash scripts/points.sh                 dino moons scg line circle
#   bash scripts/points.sh scg             one set
# Variables: EPOCHS= (80 for scg, 480 for the others)  EXTRA= flags of training  PYTHON= DRY= (python.sh)
set -euo pipefail
. "$(dirname "$0")/python.sh"
: "${EPOCHS:=}" "${EXTRA:=}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # networks this small gain nothing from a second thread
for dataset in "${@:-dino moons scg line circle}"; do
    for name in $dataset; do
        flags=(--model vanilla --loss itd --dataset "$name")
        epochs=${EPOCHS:-480}
        if [ "$name" = scg ]; then epochs=${EPOCHS:-80}; fi
        begun=$SECONDS
        run run.py --mode train "${flags[@]}" --epochs "$epochs" --batch_size 512 --learning_rate 1e-3 \
            --ema_decay 0.999 --save_epochs "$epochs" $EXTRA
        echo "$name: trained in $((SECONDS - begun)) s, imports included"
        run run.py --mode nll "${flags[@]}" --num_images 20000 --npoints 64
    done
done
