#!/usr/bin/env bash
# Reference statistics of a data set for FID: its images as files in DATASET_imgs/, measured into fid_stats/.
#   bash scripts/gen_fid.sh                    DATASET=digits bash scripts/gen_fid.sh
# With EXTRACTOR=classifier, models/DATASET_classifier.pth is trained first where it is absent (CLASSIFIER_EPOCHS=20).
# Variables: common.sh. Arguments go to gen_fid_stats.py.
. "$(dirname "$0")/common.sh"
if [ "$EXTRACTOR" = classifier ] && [ ! -e "models/${DATASET}_classifier.pth" ]; then
    run train_classifier.py --images "${experiment[@]}" $EXTRA --epochs "${CLASSIFIER_EPOCHS:-20}"
fi
run run.py --mode save_original_img "${trained[@]}"
run gen_fid_stats.py "$DATASET" "./${DATASET}_imgs" --extractor "$EXTRACTOR" "$@"
