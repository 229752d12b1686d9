#!/usr/bin/env bash
# Trains (or evaluates, or predicts) on this machine; makes the virtual environment first where it is not there yet.
#
#   launch/local.sh --config=experiments/deeplab_voc.py:demo [--accelerator=cpu|cuda|tpu] [--workdir=DIR] [flags of main]
#
# Works from any folder. A config that is not there is looked for in the repository; all other paths are the caller's.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/environment.sh"

# Prints the config's path, in the repository where the caller's folder has no such file. An argument may follow a colon.
# A mistyped name is looked for where its folder is, so that the answer lists what is near it.
locate_config() {
  local file="${1%%:*}" folder
  folder="$(dirname "$file")"
  if [[ "$file" == /* || -e "$file" ]]; then
    printf '%s\n' "$1"
  elif [[ -e "$REPOSITORY/$file" || (-d "$REPOSITORY/$folder" && ! -d "$folder") ]]; then
    printf '%s\n' "$REPOSITORY/$1"
  else
    printf '%s\n' "$1"
  fi
}

accelerator=auto
arguments=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --accelerator=*) accelerator="${1#*=}" ;;
    --accelerator)
      [[ $# -gt 1 ]] || fail "--accelerator needs a value: cpu, cuda or tpu."
      accelerator="$2"
      shift
      ;;
    --config=*) arguments+=("--config=$(locate_config "${1#*=}")") ;;
    --config)
      [[ $# -gt 1 ]] || fail "--config needs a value, for example experiments/deeplab_voc.py:demo"
      arguments+=("--config=$(locate_config "$2")")
      shift
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
if [[ ${#arguments[@]} -eq 0 ]]; then
  fail "which experiment? For example: launch/local.sh --config=experiments/deeplab_voc.py:demo"
fi

prepare_environment "$accelerator" "$REPOSITORY/requirements.txt"
# -P: the caller's folder may hold modules of any name, none of which is meant.
export PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
keep_large_buffers
exec "$VENV/bin/python" -P -m jaxseg.main "${arguments[@]}"
