import ast
import dataclasses
import errno
import inspect
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from sellarec import cli
from sellarec.config import as_options, changes_from, make_config, words_of
from sellarec.data.open import open_dataset
from sellarec.errors import SellarecError
from sellarec.profiles import PROFILES
from sellarec.settings import Config, DataConfig
from sellarec.systems.base import Workspace
from sellarec.systems.registry import SYSTEMS
from sellarec.tables import overall_table, pretty, systems_of
from tests.conftest import SMALL


def test_a_profile_is_the_defaults_with_its_changes():
    assert make_config("full").stage2.dim == 256
    assert (make_config("full").stage3.rows, make_config("full-paper").stage3.rows) == (0.5, None)
    assert make_config("quick", "ml-100k").evaluation.test_rows == 1800
    assert make_config("quick", "ml-1m").evaluation.test_rows is None
    assert make_config("smoke", **{"stage3.rows": 5, "seed": 4}).stage3.rows == 5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stage3.rowz", 1, r"'stage3.rowz' is not known. Did you mean 'rows'"),
        ("sead", 1, r"Did you mean 'seed'"),
        ("stage3", 1, r"'stage3' is a group. Valid: rows"),
        ("seed.x", 1, r"'seed' has no parts"),
        ("stage3.batch", "many", r"'stage3.batch' needs int, not 'many'"),
        ("stage3.batch", True, r"needs int"),
        ("stage3.batch", None, r"needs int, not None"),
        ("prompt.genres", 1, r"needs bool"),
        ("stage1.rows", 0, r"stage1.rows is 0; it must be at least 1"),
        ("stage3.rows", 0.0, r"a share between 0 and 1"),
        ("stage3.rows", True, r"needs int or float or None"),
    ],
)
def test_unknown_names_and_wrong_values_are_refused(name, value, message):
    with pytest.raises(SellarecError, match=message):
        make_config("smoke", **{name: value})


def test_whole_numbers_serve_as_floats_and_none_where_it_is_allowed():
    config = make_config("smoke", **{"stage3.learning_rate": 1, "stage3.rows": None})
    assert config.stage3.learning_rate == 1.0 and config.stage3.rows is None


def test_rows_are_a_whole_number_or_a_share_and_stay_what_they_are():
    config = make_config("smoke", **{"stage1.rows": 7, "stage3.rows": 0.5})
    assert type(config.stage1.rows) is int and type(config.stage3.rows) is float
    words = words_of(config)
    assert words[words.index("--stage1.rows") + 1] == "7" and words[words.index("--stage3.rows") + 1] == "0.5"


def test_every_setting_is_explained_beneath_its_field():
    groups = [type(v) for v in vars(Config()).values() if dataclasses.is_dataclass(v)]
    for kind in (Config, *groups):
        body = ast.parse(inspect.getsource(kind)).body[0].body
        for field, below in itertools.pairwise([*body, None]):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) not in {g.__name__ for g in groups}:
                assert isinstance(below, ast.Expr) and isinstance(below.value.value, str), ast.unparse(field)


def test_help_and_profiles_teach(capsys):
    cli.main([])
    text = capsys.readouterr().out
    assert all(word in text for word in ("fetch", "run", "report", "doctor", "sella", "ml-1m", "quick"))
    for name in PROFILES:
        cli.main(["profile", name])
        assert json.loads(capsys.readouterr().out) == dataclasses.asdict(make_config(name))


def test_systems_are_listed_with_the_names_that_tables_and_commands_give_them(capsys):
    cli.main(["systems"])
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("collm ")).split() == ["collm", "CoLLM-MF", "yes", "table3"]
    assert next(line for line in lines if line.startswith("semantic ")).endswith("yes")  # a step, in no table
    assert len(lines) == 1 + len(SYSTEMS)


def test_doctor_says_what_is_chosen_and_what_is_missing(capsys, monkeypatch):
    there = cli.importlib.metadata.version

    def version(package):
        if package == "streamlit":
            raise cli.importlib.metadata.PackageNotFoundError
        return there(package)

    monkeypatch.setattr(cli.importlib.metadata, "version", version)
    monkeypatch.setattr(cli.shutil, "which", lambda name: None)
    cli.main(["doctor"])
    text = capsys.readouterr().out
    assert "number format" in text and "torch" in text
    assert "missing; get it with: sellarec fetch ml-100k" in text
    assert re.search(r"^streamlit +missing$", text, re.MULTILINE)
    assert re.search(r"^C\+\+ compiler +none", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "Did you mean 'run'"),
        (["run", "selle"], "Did you mean 'sella'"),
        (["run", "sella", "--profile", "quik"], "Did you mean 'quick'"),
        (["run", "mf", "--dataset", "nowhere.csv"], "neither a registered name nor"),
        (["run"], "name a system or a table first"),
        (["run", "--profile", "smoke"], "name a system or a table first"),
        (["run", "table3", "--weights"], "--weights is of one system"),
        (["run", "mf", "--seeds", "3", "--weights"], "--weights is of one system and one seed"),
        (["run", "table3", "--seeds", "0"], "at least 1"),
        (["run", "mf", "--mf.epochs", "0"], "mf.epochs is 0; it must be at least 1"),
        (["run", "mf", "--prompt.history", "-1"], "prompt.history is -1; it must be at least 0"),
        (["run", "mf", "--seed", "-1"], "sellarec: seed is -1; it must be at least 0"),
        (["run", "mf", "--seed", "4294967296"], "seed is 4294967296; it must be at most 4294967295"),
        (["run", "mf", "--lora.dropout", "-1"], "lora.dropout is -1.0; it must be at least 0 and below 1"),
        (["run", "mf", "--stage2.temperature", "0"], "stage2.temperature is 0.0; it must be above 0"),
        (["run", "mf", "--stage2.without-contrast", "1.5"], "stage2.without_contrast is 1.5; it must be"),
        (["run", "mf", "--mf.init-std", "-0.1"], "mf.init_std is -0.1; it must be above 0"),
        (["run", "mf", "--lora.alpha", "0"], "lora.alpha is 0; it must be above 0"),
        (["run", "mf", "--binllm.binary-growth", "-1"], "binllm.binary_growth is -1.0; it must be at least 0"),
        (["run", "mf", "--data.valid-from", "0.95"], "data.valid_from is 0.95 and data.test_from 0.85; two increasing"),
        (["run", "mf", "--ctrl.batch", "1"], "ctrl.batch is 1; it must be at least 2"),
        (["run", "mf", "--stage3.cold-users", "2"], "stage3.cold_users is 2.0; it must be at most 1"),
        (["run", "mf", "--stage1.learning-rate", "-1"], "stage1.learning_rate is -1.0; it must be above 0"),
        (
            ["run", "mf", "--stage1.checkpoint-seconds", "nan"],
            "stage1.checkpoint_seconds is nan; it must be at least 0",
        ),
        (["fetch", "ml1m"], "Did you mean 'ml-1m'"),
        (["profile", "ful"], "Did you mean 'full'"),
        (["profile", "quick", "--dataset", "ml1m"], "Did you mean 'ml-1m'"),
    ],
)
def test_bad_words_end_with_one_clear_line(words, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert message in str(stop.value.code) and str(stop.value.code).startswith("sellarec: ")


def test_a_store_that_is_a_file_is_said_to_be_no_folder(planted_table):
    with pytest.raises(SystemExit, match=r"^sellarec: .*planted\.csv.*: Not a directory\.$"):
        cli.main(["run", "mf", "--dataset", str(planted_table), "--profile", "smoke", "--runs", str(planted_table)])


def test_of_a_repeated_profile_the_last_one_holds():
    words = ["mf", "--profile", "smoke", "--profile=full", "--dataset", "ml-100k", "--dataset", "ml-1m"]
    options = cli.parse(cli.RunOptions, words, "sellarec run", system="mf")
    assert options.profile == "full" and options.config == make_config("full", "ml-1m")


def test_an_unknown_option_gets_the_nearest_one(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "mf", "--stage3.rowz", "3"])
    assert stop.value.code == 2
    assert "--stage3.rows" in capsys.readouterr().err


def test_run_prints_metrics_and_the_folder(planted_table, tmp_path, capsys):
    words = ["run", "mf_bias", "--profile", "smoke", "--dataset", str(planted_table), "--runs", str(tmp_path)]
    cli.main([*words, *as_options(SMALL)])
    out = capsys.readouterr().out
    assert "test all   AUC 0." in out
    assert (tmp_path / "planted" / "no-llm" / "mf_bias").is_dir()


def test_the_documented_ways_back_to_the_paper_work_together(planted_table, llama, tmp_path, capsys):
    """Each of docs/protocol.md's switches changes a setting of its own, SeLLa-Rec runs with all of them, and a profile
    sets all that are not of size or of no use."""
    rows = (Path(cli.__file__).parents[1] / "docs/protocol.md").read_text().split("The switches may be")[0]
    given = [words for words in re.findall(r"`(--[^`]+)`", rows) if words != "--profile full"]
    switches = [word for words in given for word in words.split()]
    named = ["--dataset", str(planted_table), "--backbone", str(llama), "--runs", str(tmp_path)]
    options = cli.parse(cli.RunOptions, ["sella", *named, *switches], "sellarec run", system="sella")
    changed = changes_from("quick", options.config).keys() - {"backbone"}
    assert changed == {w.strip("-").replace("no-", "").replace("-", "_") for w in switches if w[:2] == "--"}
    left = {"prompt.history", "lora.dropout", "stage2.loss", "stage2.standardize"}
    assert changes_from("quick", make_config("quick-paper", str(planted_table))).keys() == changed - left
    assert changes_from("quick-paper", options.config).keys() == {*left, "backbone"}  # all others have the same values
    cli.main(["run", "sella", *named, "--profile", "smoke", *as_options(SMALL), *switches])
    assert "test all   AUC 0." in capsys.readouterr().out


def test_the_module_runs_as_a_program_and_ctrl_c_is_kind(monkeypatch):
    done = subprocess.run([sys.executable, "-m", "sellarec.cli", "--help"], capture_output=True, text=True, check=True)
    assert "usage: sellarec COMMAND" in done.stdout

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_doctor", interrupted)
    with pytest.raises(SystemExit, match="goes on from the last checkpoint"):
        cli.main(["doctor"])


def test_the_command_binds_to_localhost_and_passes_the_settings(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(cli.os, "execv", lambda program, argv: called.append(argv))
    cli.main(["app", "--profile", "smoke", "--seed", "3", "--stage3.rows", "5", "--runs", str(tmp_path), "--headless"])
    argv = called[0]
    assert argv[argv.index("--server.address") + 1] == "localhost"
    for asked in ("--browser.gatherUsageStats", "--server.showEmailPrompt"):
        assert argv[argv.index(asked) + 1] == "false"
    given = json.loads(argv[-1])
    assert given["seed"] == 3 and given["changes"] == {"stage3.rows": 5} and given["runs"] == str(tmp_path)
    assert not given["named"]
    for words in (["--dataset", "ml-100k"], ["--dataset=ml-100k"]):
        cli.main(["app", *words])
        assert json.loads(called[-1][-1])["named"]


@pytest.mark.parametrize("port", ["0", "65536", "99999999"])
def test_a_port_that_cannot_be_is_refused(port):
    with pytest.raises(SystemExit, match=f"--port is {port}; it must be from 1 to 65535"):
        cli.main(["app", "--port", port])


def test_the_version_names_the_code_too(capsys):
    cli.main(["--version"])
    assert re.fullmatch(r"sellarec \d+\.\d+\.\d+, code \S+\n", capsys.readouterr().out)


def test_a_mistyped_table_is_named_among_tables_and_systems():
    with pytest.raises(SystemExit, match=r"system or table 'tabel3' is not known. Did you mean 'table3'\?"):
        cli.main(["run", "tabel3"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_ends_a_table_and_says_what_to_delete(planted_table, tmp_path, monkeypatch, error):
    from sellarec.systems import registry

    def full(work, run):
        raise error

    monkeypatch.setitem(registry.SYSTEMS, "din", dataclasses.replace(registry.SYSTEMS["din"], fit=full))
    monkeypatch.setitem(registry.TABLES, "table3", ("din", "counting"))
    with pytest.raises(SystemExit, match=r"the disk is full.*No space left on device.*\.prefixes may be deleted"):
        cli.main(["run", "table3", "--profile", "smoke", "--dataset", str(planted_table), "--runs", str(tmp_path)])
    assert not list(tmp_path.rglob("counting")), "it would have found the disk full too"


def test_a_table_is_one_command_and_a_failed_system_leaves_the_others(planted_table, tmp_path, capsys, monkeypatch):
    from sellarec.systems import registry

    def fails(work, run):
        raise ValueError("no such luck")

    broken = dataclasses.replace(registry.SYSTEMS["din"], fit=fails)
    words = ["run", "table3", "--profile", "smoke", "--dataset", str(planted_table), "--runs", str(tmp_path)]
    monkeypatch.setitem(registry.TABLES, "table3", ("counting", "din", "sasrec"))
    with monkeypatch.context() as patch:
        patch.setitem(registry.SYSTEMS, "din", broken)
        with pytest.raises(SystemExit, match="1 of 3 systems failed"):
            cli.main(words)
    out = capsys.readouterr().out
    assert "0 of 3 are in the store; to compute: Counting (item + user mean), seed 0; DIN, seed 0" in out
    assert "din                    seed 0  failed: no such luck" in out
    assert re.search(r"sasrec +seed 0  AUC 0\.\d{4}  UAUC 0\.\d{4}", out)
    assert re.search(r"2 of 3: DIN, seed 0, about 00:\d\d left", out)

    work = Workspace(make_config("smoke", str(planted_table)), tmp_path)
    assert work.failure("din") == "no such luck" and work.failure("sasrec") is None
    assert systems_of(work, "table3", ("counting",)) == ("counting", "sasrec")
    assert "din failed: no such luck" in capsys.readouterr().out

    cli.main([*words, "--seeds", "2"])
    again = capsys.readouterr().out
    assert "failed" not in again and "[planted] DIN" in again and "2 of 5 are in the store" in again
    assert "counting               seed 1" not in again  # counting has no seed
    assert work.failure("din") is None
    table = overall_table(work, ("counting", "din"))
    assert table["seeds"].tolist() == [1, 2]
    values = [float(m) for m in re.findall(r"din +seed \d  AUC (0\.\d{4})", again)]
    assert table["auc_mean"].iloc[1] == pytest.approx(np.mean(values), abs=1e-4)
    assert table["auc_spread"].iloc[1] == pytest.approx(abs(values[0] - values[1]) / 2, abs=1e-4)
    assert pretty(table)["AUC over seeds"].tolist()[0] == "" and "(2)" in pretty(table)["AUC over seeds"].iloc[1]

    (work.run("din").folder / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match="1 of 3 systems failed"):
        cli.main(words)
    damaged = capsys.readouterr().out
    assert re.search(r"din +seed 0  failed: .+ was changed or added", damaged)
    assert re.search(r"sasrec +seed 0  AUC 0\.\d{4}", damaged)


def test_the_tables_name_systems_that_exist():
    from sellarec.systems.registry import SYSTEMS, TABLES

    assert "sella" in TABLES["table3"] and TABLES["table5"][0] == "sella" and TABLES["controls"][0] == "mlp_control"
    for names in TABLES.values():
        assert len(set(names)) == len(names)
        assert all(SYSTEMS[n].score for n in names)


def test_files_named_from_here_are_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "own.csv").write_text("user,item,title,rating,timestamp\n")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    config = make_config("smoke", "own.csv", backbone="./model")
    assert (config.dataset, config.backbone) == (str(tmp_path / "own.csv"), str(tmp_path / "model"))
    parsed = cli.parse(cli.ReportOptions, ["--dataset", "own.csv", "--backbone", "model"], "sellarec report").config
    assert (parsed.dataset, parsed.backbone) == (config.dataset, config.backbone)
    (tmp_path / "ml-1m").mkdir()  # a registered name stays one
    assert make_config("smoke", "ml-1m", backbone="some/hub-id").dataset == "ml-1m"
    assert make_config("smoke", "ml-1m", backbone="some/hub-id").backbone == "some/hub-id"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stage3.records": False, "stage1.rows": None, "seed": 7},
        {"stage2.alignment": 0.5, "lora.checkpointing": True, "prompt.genres": False, "stage3.order": "warm,user+item"},
    ],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_configuration_is_told_as_options_that_give_it_again(profile, changes):
    config = make_config(profile, "ml-1m", **changes)
    words = words_of(config)
    assert words[words.index("--profile") + 1] == profile and len(words) <= 6 + 2 * len(changes)
    assert cli.parse(cli.RunOptions, ["sella", *words], "sellarec run", system="sella").config == config


@pytest.mark.parametrize(
    ("name", "value"),
    [("stage1.evaluations", 0), ("stage3.batch", 0), ("stage2.epochs", -1), ("mf.patience", 0), ("stage1.rows", 0)],
)
def test_numbers_with_which_nothing_can_be_trained_are_refused(name, value):
    with pytest.raises(SellarecError, match=f"^{name} is {value}; it must be at least 1"):
        make_config(**{name: value})


def test_shapes_that_a_model_cannot_have_are_refused():
    for change, message in (
        ({"sasrec.heads": 3}, r"sasrec\.dim is 64; it must be a multiple of sasrec\.heads, 3"),
        ({"sasrec.blocks": 0}, r"sasrec\.blocks is 0"),
        ({"sasrec.history": 0}, r"sasrec\.history is 0"),
        ({"din.batch": 1}, "din.batch is 1; it must be at least 2"),
    ):
        with pytest.raises(SellarecError, match=message):
            make_config(**change)


def test_changes_are_judged_together_and_not_one_by_one():
    """Three heads fit 48 dimensions; neither the old length with the new heads nor an order of names should matter."""
    changes = {"sasrec.heads": 3, "sasrec.dim": 48}
    for order in (changes, dict(reversed(changes.items()))):
        assert make_config(**order).sasrec.dim == 48


def test_choices_are_listed_and_checked(capsys):
    for words in (["--stage2.loss", "msee"], ["--stage3.order", "warm"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", "mf", *words])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert ("mse" if "loss" in words[0] else "warm,user+item") in said
    for name, value, message in (
        ("stage1.rows", 1.5, "stage1.rows is 1.5; it must be a whole number, or a share"),
        ("stage3.facts", 1, "'stage3.facts' needs bool, not 1"),
        ("stage1.batch", True, "'stage1.batch' needs int, not True"),
        ("mlp.inputs", "records,fact", r"mlp\.inputs 'records,fact': 'fact' is not known\. Did you mean 'facts'"),
    ):
        with pytest.raises(SellarecError, match=message):
            make_config(**{name: value})
    assert make_config(**{"mlp.inputs": "records, facts"}).mlp.input_names == ["records", "facts"]


def test_settings_that_a_dataset_does_not_leave_open_are_refused_before_it_is_read():
    for name, change in (("ml-1m", {"test_from": 0.9}), ("ml-100k", {"domain": "song"})):
        with pytest.raises(SellarecError, match=f"has no effect on {name}"):
            open_dataset(name, DataConfig(**change))
