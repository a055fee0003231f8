"""Many runs over the same `sellarec run`: systems x seeds x datasets x backbones, here or on a cluster.

    pip install -e ".[snakemake]"
    snakemake -j 2 --config systems=counting,mf,mf_bias seeds=0,1,2 datasets=ml-100k,ml-1m
    snakemake -j 20 --executor slurm --default-resources slurm_partition=gpu     # pip install snakemake-executor-plugin-slurm

What is in the store is not computed again, a killed run goes on from its checkpoint, and with `--keep-going` a run that
fails leaves the others standing. Runs share what they grow from, such as stage 1: it is one job, and they wait for it.
"""

import shlex
import sys
from pathlib import Path
from urllib.parse import quote, unquote

from sellarec.systems.registry import TABLES, find_system


def chosen(name, default):
    given = config.get(name, default)
    return [word.strip() for word in str(given).split(",")] if not isinstance(given, list) else [str(w) for w in given]


STORE = Path(config.get("runs", "runs"))
PROFILE = config.get("profile", "quick")
OPTIONS = str(config.get("options", ""))  # further settings for all runs, such as "--stage3.rows 9600"
SYSTEMS = [s for name in chosen("systems", "table3") for s in TABLES.get(name, [name])]
for name in SYSTEMS:
    find_system(name)  # an unknown one is refused before anything runs

wildcard_constraints:
    dataset=r"[^/]+",
    backbone=r"[^/]+",
    system=r"\w+",
    seed=r"\d+",


def result(dataset, backbone, system, seed):
    return str(STORE / ".finished" / PROFILE / quote(dataset, safe="{}") / quote(backbone, safe="{}") / f"{system}-{seed}.txt")


def needed(wildcards):
    """What a system grows from: an own table, and other systems. A variant's own copies of these are settled among the
    runs themselves, by locks."""
    system, dataset = find_system(wildcards.system), unquote(wildcards.dataset)
    table = [dataset] if Path(dataset).is_file() else []
    needs = () if system.changes else system.needs
    return [*table, *(result(dataset, unquote(wildcards.backbone), need, wildcards.seed) for need in needs)]


for marker in (STORE / ".finished").rglob("*.txt"):  # it names its run's folder, which may have been deleted since
    if not any(Path(line).is_dir() for line in marker.read_text().splitlines() if line):
        marker.unlink()


rule all:
    input:
        [
            result(dataset, backbone, system, seed)
            for dataset in chosen("datasets", "ml-100k")
            for backbone in chosen("backbones", "smollm2-135m")
            for system in SYSTEMS
            for seed in chosen("seeds", "0")
        ],


rule run:
    input:
        needed,
    output:
        result("{dataset}", "{backbone}", "{system}", "{seed}"),
    resources:
        gpu=lambda wildcards: int(find_system(wildcards.system).uses_backbone),
    params:
        program=f"{shlex.quote(sys.executable)} -m sellarec.cli run",
        what=lambda w: shlex.join(["--dataset", unquote(w.dataset), "--backbone", unquote(w.backbone)]),
        where=f"--runs {shlex.quote(str(STORE))} --profile {PROFILE} {OPTIONS}",
    shell:
        "{params.program} {wildcards.system} {params.what} "
        "--seed {wildcards.seed} {params.where} > {output:q}.part && mv {output:q}.part {output:q}"
