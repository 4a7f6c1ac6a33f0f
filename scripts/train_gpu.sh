#!/usr/bin/env bash
# The 256 px tokenizer and the scenes generator on one GPU, in resumable pieces of under ten minutes:
#
#   until scripts/train_gpu.sh | tee /dev/stderr | grep -q '^finished'; do :; done
#
# Each call goes on where the last one stopped, trains until LIMIT seconds are over (SIGTERM: the engine writes a
# checkpoint and exits with 143) and writes $OUT/tokenizer.json or $OUT/scenes-car.json: images a second, peak of memory,
# MFU. The data packages are fetched once; without them (DATA=shapes) nothing is fetched at all.
#
# OUT       where to                         LIMIT   seconds of a piece
# WIDTH     base channels of the tokenizer; the generator's hidden size is four times as much
# STEPS     of the tokenizer                 CAR_STEPS   of the generator
# PEAK      TFLOP/s of the GPU in bfloat16   CVQ, LAB     the commands
# TOKENIZER_SETTINGS, CAR_SETTINGS           more overrides, separated by spaces
set -euo pipefail
: "${OUT:=runs/gpu}" "${LIMIT:=540}" "${WIDTH:=128}" "${STEPS:=40000}" "${CAR_STEPS:=30000}" "${PEAK:=989}" "${CVQ:=cvq}" "${LAB:=python -m lab}"
: "${DATA:=full}" "${TOKENIZER_SETTINGS:=}" "${CAR_SETTINGS:=}"
read -ra more_tokenizer <<< "$TOKENIZER_SETTINGS"
read -ra more_car <<< "$CAR_SETTINGS"
read -ra cvq <<< "$CVQ"
read -ra lab <<< "$LAB"
# The lab is in the checkout, not in the installed package.
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ "$DATA" = shapes ]; then
    drawn=("data.sources.scenes.sprites=shapes")
    only_drawn=("${drawn[@]}" "data.sources.fluent.weight=0" "data.sources.photos.weight=0")
else
    drawn=() only_drawn=()
    "${cvq[@]}" data fetch fluent-emoji emojibase-data photos > /dev/null
fi

# piece NAME RECIPE SETTINGS...: train until the limit, then tell what has been reached.
piece() {
    local name=$1 recipe=$2 code=0
    shift 2
    timeout --preserve-status --signal=TERM --kill-after=90 "$LIMIT" \
        "${cvq[@]}" train "$recipe" "train.output_dir=$OUT/$name" train.resume=true "$@" || code=$?
    # 143: the limit came. Before the first step, while images were drawn or tokenized, what is done of that is kept.
    if [ "$code" != 0 ] && [ "$code" != 143 ]; then exit "$code"; fi
    if compgen -G "$OUT/$name/checkpoints/step-*" > /dev/null; then
        PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}" "${lab[@]}" bench run "$OUT/$name" --peak "$PEAK" --json "$OUT/$name.json"
    fi
}

if [ ! -d "$OUT/tokenizer/final" ]; then
    piece tokenizer gpu/tokenizer-256 "model.network.base_channels=$WIDTH" "train.steps=$STEPS" \
        ${only_drawn[@]+"${only_drawn[@]}"} ${more_tokenizer[@]+"${more_tokenizer[@]}"}
else
    piece scenes-car gpu/scenes-car-256 "tokenizer=$OUT/tokenizer/final" "model.backbone.hidden_size=$((4 * WIDTH))" \
        "train.steps=$CAR_STEPS" ${drawn[@]+"${drawn[@]}"} ${more_car[@]+"${more_car[@]}"}
fi
if [ -d "$OUT/scenes-car/final" ]; then echo "finished: $OUT/tokenizer/final, $OUT/scenes-car/final"; else echo "more: call again"; fi
