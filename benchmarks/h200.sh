#!/usr/bin/env bash
# All GPU measurements in one command; a second call goes on where the first one ended.
#   benchmarks/h200.sh                    on one large GPU
#   benchmarks/h200.sh full bench sella   these steps only, of: doctor shape bench sella plan large table3 table5
#   benchmarks/h200.sh smoke              the same steps at a size for any machine, to try the script
# What was done with the same words is not done again. $OUT is where results go, $PYTHON the interpreter that has
# sellarec installed, $DATASET what it runs on, $BACKBONE the model that is trained, $PARTS in how many parts a batch of
# its training is taken: 1 for a small one, 8 for one of 7B; $PROFILE full, or full-paper: without our additions.
set -euo pipefail
cd "$(dirname "$0")/.."
size=${1:-full}
wanted=" ${*:2} "
for name in ${*:2}; do
    [[ " doctor shape bench sella plan large table3 table5 " == *" $name "* ]] || { echo "$0: no step '$name'" >&2; exit 2; }
done
out=${OUT:-bench-$size}
python=${PYTHON:-.venv/bin/python}
dataset=${DATASET:-ml-1m}
case $size in
full)
    profile=${PROFILE:-full} shape=qwen2-7b backbone=${BACKBONE:-smollm2-135m} parts=${PARTS:-1} large_parts=8
    bench=(--rows 2048 --candidates 2048 --repeats 3 --budgets 32768 131072)
    few=(--rows 512 --candidates 512 --repeats 2 --budgets 131072)
    tasks=(--compiled --tasks scoring operations ranking stage3 stage1 stage2)
    ;;
smoke)
    profile=smoke shape=tiny backbone=${BACKBONE:-$out/backbone-tiny} parts=${PARTS:-1} large_parts=2
    bench=(--rows 32 --candidates 32 --repeats 1) few=("${bench[@]}")
    tasks=(--tasks scoring operations ranking stage3 stage1 stage2)
    ;;
*) echo "usage: $0 [full|smoke] [STEP ...]" >&2 && exit 2 ;;
esac
mkdir -p "$out"
sellarec() { "$python" -m sellarec.cli "$@"; }
step() {
    local name=$1
    shift
    [[ $wanted == "  " || $wanted == *" $name "* ]] || return 0
    local stamp
    stamp=$out/$name-$(cksum <<<"$*" | cut -d' ' -f1).done
    [ -e "$stamp" ] && return
    echo "== $name: $*"
    local begun=$SECONDS
    "$@" 2>&1 | tee "$out/$name.log"
    echo "== $name took $((SECONDS - begun)) s" | tee -a "$out/$name.log"
    touch "$stamp"
}
on=(--dataset "$dataset" --backbone "$backbone")
large=(--dataset "$dataset" --backbone "$out/backbone-$shape")
in_parts=(--stage1.accumulate "$parts" --stage3.accumulate "$parts")
plain=() # beside a model that needs parts the plain way's copies in float32 have no room
[ "$parts" = 1 ] || plain=(--no-plain)
runs=(--profile "$profile" --runs "$out/runs" "${in_parts[@]}")

step doctor sellarec doctor
step shape "$python" benchmarks/shaped.py "$out/backbone-$shape" --like "$shape"
step bench sellarec bench "${on[@]}" --accumulate "$parts" "${bench[@]}" "${plain[@]}" "${tasks[@]}"
step sella sellarec run sella "${on[@]}" "${runs[@]}"
step plan sellarec plan "${large[@]}" --profile "$profile"
step large sellarec bench "${large[@]}" --no-plain --accumulate "$large_parts" "${few[@]}" "${tasks[@]}"
step table3 sellarec run table3 "${on[@]}" "${runs[@]}"
step table5 sellarec run table5 "${on[@]}" "${runs[@]}"
