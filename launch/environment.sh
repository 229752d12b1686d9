# Sourced by local.sh and test.sh: finds a Python, makes the virtual environment, installs the requirements.
#
#   JAXSEG_PYTHON   the Python to use, where the one that would be found is not wanted
#   JAXSEG_VENV     where the virtual environment is, .venv in the repository by default
#
# shellcheck shell=bash

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${JAXSEG_VENV:-$REPOSITORY/.venv}"
SUPPORTED="3.11 or 3.12"

say() {
  printf 'jaxseg: %s\n' "$*" >&2
}

fail() {
  say "$@"
  exit 2
}

# Whether the command runs and is a Python of a supported version. Run it, do not look for it: a version manager's shim
# exists for versions that are not selected, and fails.
is_usable_python() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

has_ensurepip() {
  "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Large buffers in huge pages that the process keeps: otherwise a CPU train step maps them anew each time, and with pages
# of 4 KiB a fifth of its time goes into page faults. Keeping them can cost memory; the caller's variable comes first
# (docs/speed.md, "Memory pages"). Only glibc reads this.
keep_large_buffers() {
  local kept=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:$kept:glibc.malloc.arena_max=1}"
}

# Prints the Pythons to try, best first, one a line.
python_candidates() {
  printf '%s\n' python3 python3.12 python3.11 python
  local folder root
  while IFS= read -r -d: folder; do
    if [[ -n "$folder" ]]; then
      printf '%s\n' "$folder/python3.12" "$folder/python3.11" "$folder/python3"
    fi
  done <<<"$PATH:"
  if command -v pyenv >/dev/null 2>&1 && root="$(pyenv root 2>/dev/null)"; then
    for folder in "$root"/versions/3.12* "$root"/versions/3.11*; do
      printf '%s\n' "$folder/bin/python"
    done
  fi
}

# Prints the Python to make the environment with: the first usable one, one that can make it without help preferred.
find_python() {
  local candidate second=""
  if [[ -n "${JAXSEG_PYTHON:-}" ]]; then
    is_usable_python "$JAXSEG_PYTHON" || fail "JAXSEG_PYTHON=$JAXSEG_PYTHON is not a Python $SUPPORTED that runs."
    printf '%s\n' "$JAXSEG_PYTHON"
    return
  fi
  while IFS= read -r candidate; do
    is_usable_python "$candidate" || continue
    if has_ensurepip "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
    second="${second:-$candidate}"
  done < <(python_candidates)
  if [[ -z "$second" ]]; then
    say "no Python $SUPPORTED found on the PATH."
    say "Install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12;"
    fail "any system: https://www.python.org/downloads/), or name one with JAXSEG_PYTHON=/path/to/python."
  fi
  printf '%s\n' "$second"
}

# Prints cpu, cuda12, cuda13 or tpu for the argument auto, cpu, cuda or tpu.
resolve_accelerator() {
  local driver
  case "$1" in
    cpu | tpu) printf '%s\n' "$1" ;;
    cuda)
      driver="$(nvidia_driver)"
      # Drivers from 580 on run CUDA 13; a machine without a GPU (an image that is built for one) gets the older wheels.
      if [[ -n "$driver" && "$driver" -ge 580 ]]; then printf 'cuda13\n'; else printf 'cuda12\n'; fi
      ;;
    auto)
      if [[ -n "$(nvidia_driver)" ]]; then
        resolve_accelerator cuda
      elif has_tpu; then
        printf 'tpu\n'
      else
        printf 'cpu\n'
      fi
      ;;
    *) fail "--accelerator=$1 is not known; it takes cpu, cuda or tpu." ;;
  esac
}

# Prints the major version of a working NVIDIA driver that JAX's wheels support (525 or later), nothing where there is none.
nvidia_driver() {
  local version
  version="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null)" || return 0
  version="${version%%.*}" # of the first of its lines, one a GPU
  if [[ "$version" =~ ^[0-9]+$ && "$version" -ge 525 ]]; then printf '%s\n' "$version"; fi
}

# A TPU is a character device of Google's driver, or a VFIO device where the PCI bus holds one of Google's (0x1ae0).
has_tpu() {
  local device
  for device in /dev/accel[0-9]*; do
    if [[ -c "$device" ]]; then return 0; fi
  done
  for device in /dev/vfio/[0-9]*; do
    if [[ -c "$device" ]] && grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor; then return 0; fi
  done
  return 1
}

# Whether the environment holds what a requirements file asks for: is_installed ACCELERATOR REQUIREMENTS-FILE...
# A stamp is the accelerator and the file's text, written after the install: one that was interrupted has none.
is_installed() {
  local accelerator="$1" file
  shift
  is_usable_python "$VENV/bin/python" || return 1
  for file in "$@"; do
    stamp_text "$accelerator" "$file" | cmp -s - "$(stamp_of "$file")" || return 1
  done
}

stamp_text() {
  printf 'accelerator %s\n' "$1"
  cat "$2"
}

stamp_of() {
  printf '%s\n' "$VENV/installed-${1##*/}"
}

# Makes the virtual environment, with pip in it.
make_venv() {
  local python="$1" accelerator="$2"
  if [[ -e "$VENV" && ! -e "$VENV/accelerator.txt" ]]; then
    say "$VENV is there and was not made by this script."
    fail "Move it away, or name another place for jaxseg's environment with JAXSEG_VENV=DIR."
  fi
  say "makes the virtual environment $VENV with $("$python" --version 2>&1) ($python)"
  rm -rf "$VENV"
  if ! { mkdir -p "$VENV" && printf '%s\n' "$accelerator" >"$VENV/accelerator.txt"; }; then
    fail "$VENV cannot be written."
  fi
  if has_ensurepip "$python"; then
    "$python" -m venv "$VENV" || fail "$python -m venv $VENV did not work; see the lines above."
  elif "$python" -m pip --version >/dev/null 2>&1; then
    # Debian's Python without python3-venv: pip of the system installs pip into the environment.
    "$python" -m venv --without-pip "$VENV" || fail "$python -m venv $VENV did not work; see the lines above."
    "$python" -m pip --python "$VENV/bin/python" install --quiet pip || fail "pip could not be installed into $VENV."
  else
    say "$python has neither ensurepip nor pip, so that no virtual environment can be made."
    fail "Debian, Ubuntu: apt-get install python3-venv. Or name another Python with JAXSEG_PYTHON=/path/to/python."
  fi
}

venv_works() {
  is_usable_python "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1
}

# Installs into the environment: install_packages ACCELERATOR REQUIREMENTS-FILE...
install_packages() {
  local accelerator="$1" file jax
  shift
  local arguments=(--disable-pip-version-check)
  if [[ ! -t 2 ]]; then arguments+=(--quiet); fi
  for file in "$@"; do arguments+=(-r "$file"); done
  if [[ "$accelerator" != cpu ]]; then
    jax="$(sed -n 's/^jax==\([^ #]*\).*/\1/p' "$REPOSITORY/requirements.txt")"
    arguments+=("jax[$accelerator]==$jax")
  fi
  say "installs $(cd "$REPOSITORY" && printf '%s ' "${@##*/}")for $accelerator; the first time this takes minutes"
  "$VENV/bin/python" -m pip install "${arguments[@]}" >&2 ||
    fail "pip could not install the requirements; see the lines above. The same command starts again where it stopped."
}

# Makes sure that the environment holds the requirements: prepare_environment auto|cpu|cuda|tpu REQUIREMENTS-FILE...
# A second call compares small files and is quick.
prepare_environment() {
  local accelerator
  accelerator="$(resolve_accelerator "$1")" || exit 2
  shift
  if is_installed "$accelerator" "$@"; then return; fi
  (
    # Two launches at once must not install into the same folder; this file is the lock.
    if command -v flock >/dev/null 2>&1; then
      exec 9<"$REPOSITORY/launch/environment.sh"
      flock -n 9 || { say "waits for another launch that prepares $VENV"; flock 9; }
    fi
    is_installed "$accelerator" "$@" || install_environment "$accelerator" "$@"
  ) || exit 2
}

# install_environment ACCELERATOR REQUIREMENTS-FILE...
install_environment() {
  local accelerator="$1" python file
  shift
  # Wheels of another accelerator would stay behind: such an environment is made anew, like one that does not work.
  if ! venv_works || [[ "$(cat "$VENV/accelerator.txt" 2>/dev/null)" != "$accelerator" ]]; then
    python="$(find_python)" || exit 2
    make_venv "$python" "$accelerator"
  fi
  for file in "$@"; do rm -f "$(stamp_of "$file")"; done
  install_packages "$accelerator" "$@"
  for file in "$@"; do stamp_text "$accelerator" "$file" >"$(stamp_of "$file")" || fail "$VENV cannot be written."; done
  say "the environment is ready"
}
