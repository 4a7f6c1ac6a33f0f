#!/usr/bin/env bash
# What this project does on one GPU, in eight minutes, without a network: the exact lookup (Triton) beside its peers and
# float64, steps of gpu/tokenizer-256 and of the 4B plan at reduced depth with their MFU, sampling with the compiled step
# and a CUDA graph, equality of ids. A part that fails stops no other. Then `python -m lab tables` shows it in docs/gpu.md.
#
#   scripts/gpu_check.sh
#
# OUT     the result               LIMIT   seconds of everything      PEAK   TFLOP/s of the GPU in bfloat16
# DEVICE  cpu, with TINY=1, to see that all of it runs                LAB    the command
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${OUT:=results/gpu.json}" "${LIMIT:=480}" "${PEAK:=989}" "${DEVICE:=cuda}" "${TINY:=}" "${LAB:=python -m lab}"
read -ra lab <<< "$LAB"
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${lab[@]}" bench gpu --device "$DEVICE" --peak "$PEAK" --limit "$LIMIT" --json "$OUT" ${TINY:+--tiny}
