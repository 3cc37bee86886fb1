# Sourced by the scripts of the experiments: the published settings, each an environment variable.
#   DATASET=celeba    data set                         EPOCHS=50   epochs of training, and the checkpoint used later
#   MODEL=diff        diff, vae or vanilla             STEPS=      end training after so many steps, whatever EPOCHS says;
#   A_DIM=256         dimensions of z                              the newest checkpoint is then the one used later
#   MMD=0.1           weight of the MMD                SEED=64     seed
#   TAG=              a name that keeps runs apart     EXTRA=      flags for every command (the model's); they win
#   TRAINING=         flags of the trainings           SAMPLING=   flags of eval_fid
#   INVERSION=        flags of latent_quality, disentangle and interpolate
#   EXTRACTOR=        inception; efficientnet (no download, from 28 pixels up); classifier, trained on the data set itself
#   PYTHON= DRY=      python.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/python.sh"
: "${DATASET:=celeba}" "${MODEL:=diff}" "${EPOCHS:=50}" "${STEPS:=}" "${A_DIM:=256}" "${MMD:=0.1}" "${SEED:=64}"
: "${TAG:=}" "${EXTRA:=}" "${TRAINING:=}" "${SAMPLING:=}" "${INVERSION:=}"
case $DATASET in
    digits) : "${EXTRACTOR:=classifier}" ;;
    celeba | ffhq | cifar10 | chairs) : "${EXTRACTOR:=inception}" ;;
    *) : "${EXTRACTOR:=efficientnet}" ;;
esac

# Flags that name the experiment; then with those that say how long to train; then with those that find the checkpoint.
experiment=(--model "$MODEL" --dataset "$DATASET" --a_dim "$A_DIM" --mmd_weight "$MMD" --prior regular --r_seed "$SEED"
    ${TAG:+--tag "$TAG"})
training=("${experiment[@]}" --epochs "$EPOCHS" ${STEPS:+--max_steps "$STEPS"} $EXTRA $TRAINING)
if [ -z "$STEPS" ]; then experiment+=(--epochs "$EPOCHS"); fi
trained=("${experiment[@]}" $EXTRA)

# The experiment's folder below the root imgs, results, ...
folder() {
    python_here -c 'import sys, commandline, config
from dataset import registry
command, _ = commandline.parse(sys.argv[2:], "common.sh", registry.SPECS, extra=lambda group: None)
print(config.folder(command.config, sys.argv[1]))' "$1" "${trained[@]}"
}
