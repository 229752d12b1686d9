#!/usr/bin/env bash
# Lint, types and tests in the environment that launch/local.sh uses, with the test tools added.
#
#   launch/test.sh [arguments of pytest]        for example: launch/test.sh tests/report -k overlay
#
# Whole runs (marked slow) are left out; `launch/test.sh -m slow` runs them.
set -uo pipefail

# shellcheck source=launch/environment.sh
source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/environment.sh"

cores() {
  local number
  number="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
  if [[ "$number" -gt 8 ]]; then number=8; fi
  printf '%s\n' "$number"
}

# The tests run on the CPU: an environment that is there is taken whatever its accelerator.
accelerator="$(cat "$VENV/accelerator.txt" 2>/dev/null || echo auto)"
[[ "$accelerator" == cuda* ]] && accelerator=cuda
prepare_environment "$accelerator" "$REPOSITORY/requirements.txt" "$REPOSITORY/requirements-test.txt"
cd "$REPOSITORY" || exit 2
failed=()
run() {
  say "$1"
  "$VENV/bin/python" -m "${@:2}" || failed+=("$1")
}
run "lint" ruff check .
run "format" ruff format --check .
run "types" mypy
run "tests" pytest -n "$(cores)" -m "not slow" "$@"
if [[ ${#failed[@]} -gt 0 ]]; then
  say "failed: ${failed[*]}"
  exit 1
fi
