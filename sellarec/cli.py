"""The command line: one function a command; what each takes is in options.py."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from sellarec.config import as_parameters, located, make_config
from sellarec.data import amazon_book, sources
from sellarec.data.open import check_name, open_dataset
from sellarec.distributed import is_main, leave
from sellarec.errors import SellarecError, disk_is_full, nearest
from sellarec.options import (
    AdoptOptions,
    AppOptions,
    CompareOptions,
    FetchOptions,
    PlanOptions,
    ProfileOptions,
    PublishOptions,
    ReportOptions,
    RunOptions,
)
from sellarec.profiles import PROFILES

if TYPE_CHECKING:
    from sellarec.runs import Run
    from sellarec.systems.base import Workspace

USAGE = """usage: sellarec COMMAND [--help]

  fetch NAME       bring data or a model into the cache: {sources}
  run SYSTEM       compute one system and what it needs, as in: sellarec run sella; the command systems lists all
  run TABLE        all systems of table3; of table5, the ablations; of controls, the ablations of the MLP; of checks,
                   baselines that read no labels off our counts
  compare RUN ...  AUC and UAUC of finished runs, and what the first has over each other one, with intervals
  report           execute all notebooks and write reports/<run>/index.html
  app              explore predictions and attention in the browser, on localhost; shows runs, never trains
  publish          write the store's runs, without a line of the data, to reports/published
  adopt            bring published runs into the store; rows and labels come from your own copy of the data
  bench            this machine's speed against the plain way of doing the same, in one run
  plan             memory, disk, operations and time of a run, before it runs; refuses what cannot fit
  doctor           versions, CPU features, chosen number format, what is fetched and what is missing
  systems          every system: its name here, its name in tables and figures, which tables it is in
  profile NAME     print a profile's settings: {profiles}
  --version        of this suite and its code, for whoever reports a problem or cites a result
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point of `sellarec`; errors that a user can mend are printed without a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        _dispatch(argv)
        leave()
    except SellarecError as error:
        sys.exit(f"sellarec: {error}")
    except (NotADirectoryError, FileExistsError, PermissionError) as error:  # a folder that was named cannot be one
        sys.exit(f"sellarec: {error.filename}: {error.strerror}.")
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if not disk_is_full(error):
            raise
        sys.exit(
            f"sellarec: the disk is full: {error}. A run store's .prefixes may be deleted; the command then goes on."
        )
    except KeyboardInterrupt:
        sys.exit("\nsellarec: stopped. The same command goes on from the last checkpoint.")


def _dispatch(argv: list[str]) -> None:
    commands = {"fetch": _fetch, "run": _run, "compare": _compare, "report": _report, "app": _app, "publish": _publish}
    commands |= {"adopt": _adopt, "bench": _bench, "plan": _plan, "doctor": _doctor, "systems": _systems}
    commands |= {"profile": _profile}
    if not argv or argv[0] in ("-h", "--help"):
        lists = {"sources": sources.SOURCES, "profiles": PROFILES}
        print(USAGE.format(**{k: ", ".join(v) for k, v in lists.items()}))
        return
    if argv[0] == "--version":
        return _version_line()
    if argv[0] not in commands:
        raise SellarecError(f"command '{argv[0]}' is not known. {nearest(argv[0], commands)}")
    commands[argv[0]](argv[1:])


def _version_line() -> None:
    from sellarec.runs import code_version

    print(f"sellarec {_version('sellarec')}, code {code_version()}")


def _fetch(argv: list[str]) -> None:
    options = tyro.cli(FetchOptions, prog="sellarec fetch", args=argv)
    folder = sources.fetch(options.name, options.origin, force=options.force)
    if options.name in sources.MODELS:
        from sellarec.backbone.loading import convert_gguf

        folder = convert_gguf(folder / sources.MODELS[options.name].gguf)
    if options.name == "amazon-book":
        amazon_book.compare(open_dataset(options.name, make_config(dataset=options.name).data))
    print(f"{options.name} is in {folder}")


def _run(argv: list[str]) -> None:
    from sellarec.systems.base import Workspace
    from sellarec.systems.registry import SYSTEMS, TABLES

    name = argv[0] if argv else ""
    if not name or (name.startswith("-") and not {"-h", "--help"} & set(argv)):
        valid = ", ".join([*TABLES, *SYSTEMS])
        raise SellarecError(f"name a system or a table first, as in: sellarec run sella. Valid: {valid}.")
    options = parse(RunOptions, argv, "sellarec run", system=tyro.MISSING if name.startswith("-") else name)
    work = Workspace(options.config, options.runs)
    if options.system not in [*TABLES, *SYSTEMS]:
        known = nearest(options.system, [*TABLES, *SYSTEMS])
        raise SellarecError(f"system or table '{options.system}' is not known. {known}")
    if options.system in TABLES or options.seeds != 1:
        if options.weights:
            raise SellarecError("--weights is of one system and one seed: sellarec run NAME --seed N --weights")
        return _run_all(work, options.system, options.seeds)
    run = work.with_weights(options.system) if options.weights else work.run(options.system)
    if (run.folder / "metrics.json").exists():
        for name, found in run.metrics["test"].items():
            scores = f"AUC {_four(found['auc'])}  UAUC {_four(found['uauc'])}"
            print(f"test {name:5} {scores}  ({found['rows']:,} rows, UAUC of {found['users']} users)")
    print(run.folder)
    if not run.has_weights:
        print("It was adopted without weights; --weights computes it again.")


def _run_all(work: Workspace, name: str, seeds: int) -> None:
    from sellarec.batch import compute, jobs_of

    if seeds < 1:
        raise SellarecError(f"--seeds is {seeds}; it must be at least 1.")
    jobs = jobs_of(work, name, seeds)
    failed = compute(jobs)
    for job in jobs:
        try:
            line = _line(job.work.run(job.system.name)) if job not in failed else ""
        except SellarecError as error:  # a run of the store that was damaged; the others' lines are of use
            failed[job] = str(error)
        line = f"failed: {failed[job]}" if job in failed else line
        print(f"{job.system.name:22} seed {job.work.config.seed}  {line}")
    if failed:
        raise SellarecError(f"{len(failed)} of {len(jobs)} systems failed. The same command tries only these again.")


def _line(run: Run) -> str:
    """Its metrics; its folder if it scores no rows."""
    if not (run.folder / "metrics.json").exists():
        return str(run.folder)
    found = run.metrics["test"]["all"]
    return f"AUC {_four(found['auc'])}  UAUC {_four(found['uauc'])}"


def _four(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _compare(argv: list[str]) -> None:
    options = parse(CompareOptions, argv, "sellarec compare", systems=tyro.MISSING)
    from sellarec.compare import by_seed, compare, grown_apart, runs_named
    from sellarec.marks import MARK, UNFAIR
    from sellarec.systems.base import Workspace
    from sellarec.tables import pretty

    if options.seeds < 1:
        raise SellarecError(f"--seeds is {options.seeds}; it must be at least 1.")
    work = Workspace(options.config, options.runs, computes=False)
    runs = runs_named(work, options.systems, options.seeds)
    overall, differences = compare(runs, options.on, options.part, items=options.items)
    of = next(iter(runs.values()))[0].config["dataset"]
    over = "users and items" if options.items else "users"
    print(f"{of}, {options.part} scored {options.on} rows: {overall.attrs['rests_on']}; 95 % intervals over {over}\n")
    print(pretty(overall).assign(**{"mean probability": overall["probability"].map("{:.3f}".format)}).to_string())
    if len(differences):
        print(f"\n{differences.attrs['of']} minus\n\n{pretty(differences).to_string()}")
    seeds = by_seed(runs, options.on, options.part)
    if len(seeds):
        said = "the same by seed, and 95 % t intervals of their mean: the variation between seeds, over the same users"
        print(f"\n{said}\n\n{seeds.to_string()}")
    if any(label.endswith(MARK) for label in runs):
        print(f"\n{UNFAIR} docs/results.md says why.")
    for line in grown_apart(runs):
        print(f"\n{line}")


def _app(argv: list[str]) -> None:
    options = parse(AppOptions, argv, "sellarec app")
    if not 1 <= options.port <= 65535:
        raise SellarecError(f"--port is {options.port}; it must be from 1 to 65535.")
    script = _of_checkout("app/main.py")
    named = any(word.split("=")[0] == "--dataset" for word in argv)  # then no other stands in for one without runs
    given = as_parameters(options.profile, options.config) | {"runs": str(options.runs.resolve()), "named": named}
    words = [sys.executable, "-m", "streamlit", "run", str(script)]
    words += ["--server.address", "localhost", "--server.port", str(options.port), "--server.showEmailPrompt", "false"]
    words += [
        "--client.toolbarMode",
        "minimal",
        "--server.headless",
        str(options.headless).lower(),
        "--browser.gatherUsageStats",
        "false",
    ]
    os.execv(sys.executable, [*words, "--", json.dumps(given)])


def _bench(argv: list[str]) -> None:
    os.execv(sys.executable, [sys.executable, str(_of_checkout("benchmarks/engine.py")), *argv])


def _of_checkout(name: str) -> Path:
    script = Path(__file__).resolve().parent.parent / name
    if not script.is_file():
        raise SellarecError(f"{script} is not there; it is part of a checkout: install with pip -e.")
    return script


def _report(argv: list[str]) -> None:
    options = parse(ReportOptions, argv, "sellarec report")
    from sellarec.report.make import make_report

    if options.origin:
        sources.fetch(options.config.dataset, options.origin)
    make_report(options.profile, options.config, options.runs, options.reports, compute=options.compute)


def _publish(argv: list[str]) -> None:
    options = parse(PublishOptions, argv, "sellarec publish")
    from sellarec.published import publish
    from sellarec.systems.base import Workspace

    written = publish(Workspace(options.config, options.runs, computes=False), options.to)
    for folder in written:
        print(folder)
    print(f"{len(written)} runs were not in {options.to} yet")


def _adopt(argv: list[str]) -> None:
    options = parse(AdoptOptions, argv, "sellarec adopt")
    from sellarec.published import adopt, other_formats
    from sellarec.systems.base import Workspace

    work = Workspace(options.config, options.runs)
    adopted = adopt(work, options.origin)
    for folder in adopted:
        print(folder)
    checked = "; their metrics are those of your data" if adopted else ""
    print(f"{len(adopted)} runs were not in {options.runs} yet{checked}")
    for other in other_formats(work, options.origin):
        print(
            f"Here {work.base_dtype} would be chosen. To see runs in {other}, add --dtype {other} to what follows, "
            f'in a notebook changes = {{"dtype": "{other}"}}.'
        )


def _plan(argv: list[str]) -> None:
    options = parse(PlanOptions, argv, "sellarec plan")
    from sellarec import plan
    from sellarec.backbone import prefixes
    from sellarec.machine import describe_machine
    from sellarec.systems.base import Workspace

    work = Workspace(options.config, options.runs, computes=False)
    there = (options.device, options.memory, options.tflops, options.processes)
    machine = describe_machine(options.config.dtype, *there)
    if options.device is None:
        machine = dataclasses.replace(machine, room=prefixes.room(work.prefix_folder))
    found = plan.make_plan(work, machine)
    print(plan.described(found, options.config.backbone))
    if not found.fits:
        raise plan.refusal(found, plan.what_would_fit(work, machine))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _doctor(argv: list[str]) -> None:
    tyro.cli(lambda: None, prog="sellarec doctor", args=argv, description="Say what this machine and this cache have.")
    import torch

    from sellarec.backbone.loading import choose_placement, cpu_features

    names = ("torch", "transformers", "peft", "accelerate", "plotly", "streamlit", "papermill", "openTSNE")
    _version_line()
    print(f"python        {platform.python_version()}")
    for name in names:
        print(f"{name:13} {_version(name)}")
    print(f"cores         {os.cpu_count()}, torch uses {torch.get_num_threads()}")
    features = ", ".join(f"{name}: {'yes' if there else 'no'}" for name, there in cpu_features().items())
    print(f"bf16 on CPU   {features}")
    print(f"GPU           {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    print(f"number format {choose_placement().reason}")
    compiler = next(filter(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")), None)
    print(f"C++ compiler  {compiler or 'none: layers are never compiled, long work is slower'}")
    print(f"cache         {sources.home()}")
    for name in sources.SOURCES:
        state = "fetched" if sources.is_fetched(name) else f"missing; get it with: sellarec fetch {name}"
        print(f"  {name:13} {state}")


def _systems(argv: list[str]) -> None:
    tyro.cli(lambda: None, prog="sellarec systems", args=argv, description="List every system that can be run.")
    from sellarec.systems.registry import SYSTEMS, TABLES

    print(f"{'name':20} {'in tables and figures':40} {'language model':15} tables")
    for name, system in SYSTEMS.items():
        of = ", ".join(table for table, names in TABLES.items() if name in names)
        print(f"{name:20} {system.label:40} {'yes' if system.uses_backbone else 'no':15} {of}".rstrip())


def _profile(argv: list[str]) -> None:
    options = tyro.cli(ProfileOptions, prog="sellarec profile", args=argv)
    check_name(options.dataset)
    print(json.dumps(dataclasses.asdict(make_config(options.name, options.dataset)), indent=2))


def parse(command: type, argv: list[str], prog: str, **fixed: Any) -> Any:
    """Parse a command whose settings default to the profile and dataset named on the same line."""
    profile, dataset = _option(argv, "profile", "quick"), _option(argv, "dataset", "ml-100k")
    default = command(**fixed, profile=profile, config=make_config(profile, dataset))
    options = tyro.cli(command, prog=prog, args=argv, default=default)
    return dataclasses.replace(options, config=located(options.config))


def _option(argv: list[str], name: str, default: str) -> str:
    for n, word in enumerate(argv):  # the last one holds, as for every option
        if word == f"--{name}" and n + 1 < len(argv):
            default = argv[n + 1]
        if word.startswith(f"--{name}="):
            default = word.split("=", 1)[1]
    return default


if __name__ == "__main__":
    main()
