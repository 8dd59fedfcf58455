#!/usr/bin/env bash
# The loads of long contexts that the KV hierarchy is measured with: a server with random weights, driven by
# `spindle bench serve`, and what its cache did meanwhile.
#
#   tools/loads.sh SPINDLE MODEL FOLDER OVERLAP LOAD:ALGORITHM...
#
# MODEL is a folder with a config.json. FOLDER gets server.txt, and for each load NAME.json (the client's numbers) and a
# line of summary.txt with hits, misses, bytes and the most memory that the driver counted. OVERLAP is the share of the
# pages that a step reads again (--selection-overlap); `own` leaves selections to the algorithms. Loads: a (8 x 32K, 512 out), b (24 x 16K, 4K out),
# c (9 x 55K, 2K out), d (16 x 55K, 1K out, at random, 0.3/s), e (24 x 16K, 512 out). GPU_MEMORY and HOST_MEMORY say how
# much there is (40GiB, 96GiB), SERVE what else the server is told.
set -uo pipefail

if [ $# -lt 5 ]; then
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
spindle=$1
model=$2
folder=$3
overlap=$4
shift 4
mkdir -p "$folder" || exit 2
port=18080
url=http://127.0.0.1:$port
serve=("$model" --device cuda --weights random --gpu-memory "${GPU_MEMORY:-40GiB}"
  --host-memory "${HOST_MEMORY:-96GiB}" --max-model-len 60000 --max-lanes 24 --port $port)
[ "$overlap" = own ] || serve+=(--selection-overlap "$overlap")
# shellcheck disable=SC2086
"$spindle" serve "${serve[@]}" ${SERVE:-} >"$folder/server.txt" 2>&1 &
server=$!
nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 >"$folder/memory.txt" 2>/dev/null &
sampler=$!
trap 'kill $server $sampler 2>/dev/null' EXIT

# get PATH: what the server says there.
get() {
  exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
  printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$1" >&3
  cat <&3
  exec 3>&-
}

for _ in $(seq 300); do
  get /health 2>/dev/null | grep -q ' 200 ' && break
  kill -0 $server 2>/dev/null || { cat "$folder/server.txt"; exit 1; }
  sleep 0.5
done

# Host memory is pinned while the server already answers; loads are measured when it is all there.
host_rows() { get /metrics | sed -n 's/^spindle_host_rows{[^}]*} //p' | tr -d '\r'; }
for _ in $(seq 120); do
  rows=$(host_rows)
  sleep 1
  [ "${rows:-0}" != 0 ] && [ "$rows" = "$(host_rows)" ] && break
done

# measures: the counters of pages, one line.
measures() {
  get /metrics | grep -E '^spindle_[a-z_]*(page|fetched|offloaded|sparse|dram|host|preempt)[a-z_]*' | tr -d '\r' | tr '\n' ' '
}

for run in "$@"; do
  load=${run%%:*}
  algorithm=${run#*:}
  case $load in
    a) shape=(--concurrency 8 --requests 8 --prompt-tokens 32K --gen-tokens 512) ;;
    b) shape=(--concurrency 24 --requests 24 --prompt-tokens 16K --gen-tokens 4K) ;;
    c) shape=(--concurrency 9 --requests 9 --prompt-tokens 55000 --gen-tokens 2K) ;;
    d) shape=(--rate 0.3 --requests 16 --prompt-tokens 55000 --gen-tokens 1K) ;;
    e) shape=(--concurrency 24 --requests 24 --prompt-tokens 16K --gen-tokens 512) ;;
    *) echo "there is no load $load" >&2; exit 2 ;;
  esac
  name=$load-$algorithm-$overlap
  before=$(measures)
  start=$(date +%s.%N)
  "$spindle" bench serve --url $url --prompt ids --extra "{\"attention\": {\"algorithm\": \"$algorithm\"}}" \
    --json "$folder/$name.json" "${shape[@]}" >"$folder/$name.txt" 2>&1
  code=$?
  end=$(date +%s.%N)
  {
    echo "== $name: exit code $code, $(echo "$start $end" | awk '{printf "%.1f", $2 - $1}') s"
    echo "before: $before"
    echo "after: $(measures)"
    echo "the driver's count: $(sort -n "$folder/memory.txt" | tail -1) MiB at most since the start"
    tail -12 "$folder/$name.txt"
  } | tee -a "$folder/summary.txt"
done
