#!/usr/bin/env bash
# Times the networks of experiments/bench.py beside PyTorch's, one process a row, and writes the table.
#
#   launch/bench.sh [--alone] [--large] [--as-is] [--accelerator=cpu|cuda|tpu] [--results=DIR] [ROW...]
#                   [--config.KEY=VALUE ...]
#
#   --alone       without PyTorch, which is then not installed
#   --as-is       nothing is installed or compared: the environment is taken with the versions that it has, as in a
#                 container; they stand in the result
#   --large       an accelerator's table: each row at 16 x 513 x 513 (16 x 512 x 512) and 8 x 1024 x 1024, bfloat16,
#                 five steps a turn, PyTorch's network by torch.compile
#   --results     where bench-<machine>-<date>.{json,md} go, experiments/results by default
#   ROW           all of experiments/bench.py by default; NAME, or NAME@BATCHxSIDE
#
# What begins with --config goes to every row. JAXSEG_VENV=DIR names the environment; one that this project's scripts
# did not make is taken as it is where it holds the pinned requirements. Each row's bench.json stays in runs/bench/ROW.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/environment.sh"

# Row and the package that has the same network.
PEERS=(
  deeplab_v3_resnet50:torchvision
  deeplab_v3plus_mobilenet_v2:smp
  unet_resnet34:smp
  tiramisu56:torch
  deeplab_v3plus_xception65:smp
)

# Prints whose network a row is compared with; fails where there is no such row.
peer_of() {
  local pair
  for pair in "${PEERS[@]}"; do
    if [[ "${pair%%:*}" == "${1%%@*}" ]]; then
      printf '%s\n' "${pair#*:}"
      return
    fi
  done
  fail "there is no row $1; rows are ${PEERS[*]%%:*}"
}

# Whether the environment has every pinned package of the requirements files in its version.
holds_requirements() {
  "$VENV/bin/python" - "$@" <<'PYTHON' 2>/dev/null
import importlib.metadata, re, sys
for path in sys.argv[1:]:
    for name, pinned in re.findall(r"^([\w.-]+)==([^ #\n]+)", open(path).read(), re.MULTILINE):
        assert importlib.metadata.version(name).split("+")[0] == pinned
PYTHON
}

# Prints a row at an accelerator's sizes. The U-Net of segmentation_models_pytorch takes multiples of 32.
at_large_sizes() {
  if [[ "$1" == *@* ]]; then
    printf '%s\n' "$1"
  elif [[ "$1" == unet_resnet34 ]]; then
    printf '%s\n' "$1@16x512" "$1@8x1024"
  else
    printf '%s\n' "$1@16x513" "$1@8x1024"
  fi
}

accelerator=auto alone="" large="" as_is="" results="$REPOSITORY/experiments/results"
rows=() arguments=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --alone) alone=yes ;;
    --large) large=yes ;;
    --as-is) as_is=yes ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --results=*) results="${1#*=}" ;;
    --config.*=*) arguments+=("$1") ;;
    -*) fail "$1 is not known; known are --alone, --large, --as-is, --accelerator=, --results=, --config.KEY=VALUE." ;;
    *) rows+=("$1") ;;
  esac
  shift
done
if [[ ${#rows[@]} -eq 0 ]]; then rows=("${PEERS[@]%%:*}"); fi
for row in "${rows[@]}"; do peer_of "$row" >/dev/null; done
if [[ -n "$large" ]]; then
  named=("${rows[@]}") rows=()
  while IFS= read -r row; do rows+=("$row"); done < <(for row in "${named[@]}"; do at_large_sizes "$row"; done)
  arguments=(--config.train.compute_dtype=bfloat16 --config.bench.steps_a_turn=5 --config.bench.torch_compile=True
    ${arguments[@]+"${arguments[@]}"})
fi

requirements=("$REPOSITORY/requirements.txt")
if [[ -z "$alone" ]]; then requirements+=("$REPOSITORY/requirements-references.txt"); fi
if [[ -n "$as_is" ]]; then
  [[ -x "$VENV/bin/python" ]] || fail "--as-is: $VENV has no bin/python; name the environment with JAXSEG_VENV=DIR."
elif [[ -e "$VENV/accelerator.txt" ]] || ! holds_requirements "${requirements[@]}"; then
  prepare_environment "$accelerator" "${requirements[@]}"
fi

mkdir -p "$results"
results="$(cd "$results" && pwd)"
cd "$REPOSITORY"
keep_large_buffers # both sides', as launch/local.sh does
failed=() folders=()
for row in "${rows[@]}"; do
  against=none
  if [[ -z "$alone" ]]; then against="$(peer_of "$row")"; fi
  say "$row, against $against"
  if "$VENV/bin/python" -m jaxseg.main --mode=bench "--config=experiments/bench.py:$row" "--against=$against" \
    "--workdir=runs/bench/$row" ${arguments[@]+"${arguments[@]}"}; then
    folders+=("runs/bench/$row")
  else
    failed+=("$row")
  fi
done
if [[ ${#folders[@]} -gt 0 ]]; then
  "$VENV/bin/python" -m jaxseg.tools.bench.collect "$results" "${folders[@]}"
fi
if [[ ${#failed[@]} -gt 0 ]]; then
  say "failed: ${failed[*]}"
  exit 1
fi
