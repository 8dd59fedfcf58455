#!/usr/bin/env bash
# Runs the GPU executable on a machine that has a GPU and need not have Rust, and collects what it says.
#
#   tools/gpu.sh EXECUTABLE FOLDER [PART...]
#
# EXECUTABLE is the example `gpu` of crates/testing (CONTRIBUTING.md says how it is built). FOLDER gets PART.txt, and
# PART.json where there are numbers. Parts: check, golden, greedy, rates, memcheck, racecheck; all of them where none is
# named. PART:NAME runs only what begins with NAME, where a part has names (check, rates, memcheck, racecheck).
# CUBLAS may name the folder of libcublasLt.so.13. The exit code is not 0 if a part fails; compute-sanitizer's parts are
# skipped with a notice where it is not installed, and everything where there is no GPU.
set -uo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
gpu=$1
folder=$2
shift 2
[ $# -gt 0 ] || set -- check golden greedy rates memcheck racecheck
mkdir -p "$folder" || exit 2

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)
common=()
[ -z "${CUBLAS:-}" ] || common+=(--cublas "$CUBLAS")

{
  date -u +%FT%TZ
  uname -srm
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv 2>&1
  grep -m1 'model name' /proc/cpuinfo
  grep MemTotal /proc/meminfo
  sha256sum "$gpu"
} >"$folder/machine.txt" 2>&1

failed=()

# run FILE COMMAND...: shows the output, keeps it, and says how it ended.
run() {
  local file=$1 start code
  shift
  start=$(date +%s)
  "$@" 2>&1 | tee "$folder/$file.txt"
  code=${PIPESTATUS[0]}
  echo "== $file: exit code $code after $(($(date +%s) - start)) s" | tee -a "$folder/$file.txt"
  [ "$code" = 0 ] || failed+=("$file")
}

for part in "$@"; do
  name=${part%%:*}
  arguments=("${common[@]}")
  [ "$name" = "$part" ] || arguments+=(--only "${part#*:}")
  file=${part//[:\/]/-}
  case $name in
    check)
      run "$file" "$gpu" check "${arguments[@]}"
      ;;
    golden | greedy | rates)
      run "$file" "$gpu" "$name" --json "$folder/$file.json" "${arguments[@]}"
      ;;
    memcheck | racecheck)
      if [ -z "$sanitizer" ]; then
        echo "== $file: skipped, compute-sanitizer is not installed" | tee "$folder/$file.txt"
      else
        # Errors that a child makes on purpose are its own; racecheck does not get through whole captured steps.
        [ "$name" = memcheck ] || arguments+=(--suites)
        run "$file" "$sanitizer" --tool "$name" --target-processes application-only --error-exitcode 9 \
          --print-limit 20 "$gpu" check --quick "${arguments[@]}"
      fi
      ;;
    *)
      echo "there is no part $name" >&2
      failed+=("$part")
      ;;
  esac
done

if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all parts passed: $*"
