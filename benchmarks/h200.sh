#!/usr/bin/env bash
# All GPU measurements in one command; a second call goes on where the first one ended.
#   benchmarks/h200.sh            on one large GPU
#   benchmarks/h200.sh smoke      the same steps at a size for any machine, to try the script
# $OUT is where results go, $PYTHON the interpreter that has sellarec installed, $DATASET what it runs on.
set -euo pipefail
cd "$(dirname "$0")/.."
size=${1:-full}
out=${OUT:-bench-$size}
python=${PYTHON:-.venv/bin/python}
dataset=${DATASET:-ml-1m}
case $size in
full) profile=full shape=qwen2-7b backbone=${BACKBONE:-smollm2-135m} bench=(--rows 2048 --candidates 2048 --repeats 5) ;;
smoke) profile=smoke shape=tiny backbone=$out/backbone-tiny bench=(--rows 32 --candidates 32 --repeats 1) ;;
*) echo "usage: $0 [full|smoke]" >&2 && exit 2 ;;
esac
mkdir -p "$out"
sellarec() { "$python" -m sellarec.cli "$@"; }
step() {
    local name=$1
    shift
    [ -e "$out/$name.done" ] && return
    echo "== $name: $*"
    local begun=$SECONDS
    "$@" 2>&1 | tee "$out/$name.log"
    echo "== $name took $((SECONDS - begun)) s" | tee -a "$out/$name.log"
    touch "$out/$name.done"
}
on=(--dataset "$dataset" --backbone "$backbone")
large=(--dataset "$dataset" --backbone "$out/backbone-$shape")
runs=(--profile "$profile" --runs "$out/runs")

step doctor sellarec doctor
step shape "$python" benchmarks/shaped.py "$out/backbone-$shape" --like "$shape"
step bench sellarec bench "${on[@]}" "${bench[@]}"
step sella sellarec run sella "${on[@]}" "${runs[@]}"
step plan sellarec plan "${large[@]}" --profile "$profile"
step large sellarec bench "${large[@]}" --no-plain "${bench[@]}"
step table3 sellarec run table3 "${on[@]}" "${runs[@]}"
step table5 sellarec run table5 "${on[@]}" "${runs[@]}"
