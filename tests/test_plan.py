"""What `sellarec plan` foretells, against what happens."""

import dataclasses
import math
import re

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from sellarec import cli, plan
from sellarec.backbone.engine import log_odds
from sellarec.backbone.language_model import open_language_model, wrap_language_model
from sellarec.backbone.loading import choose_placement
from sellarec.backbone.lora import add_lora
from sellarec.backbone.token_rows import without_prefix
from sellarec.config import change_config, make_config
from sellarec.errors import SellarecError
from sellarec.machine import V1_FILES, Machine, _free_memory, describe_machine, matmul_rate
from sellarec.plan.text import TOO_SMALL, described
from sellarec.prompts import Prompt
from sellarec.settings import LoraSettings
from sellarec.systems.base import Workspace
from tests.conftest import SMALL, save_backbone

LAYERS, BATCH = 5, 6


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3"])
def deep(request, tmp_path_factory, tokenizer):
    """A backbone of five layers, so that two tell nothing by themselves."""
    folder = save_backbone(tmp_path_factory, request.param, tokenizer)
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = (config.layer_types * LAYERS)[:LAYERS]
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def planned(planted_table, tmp_path_factory):
    """A workspace of which nothing is ever computed."""
    config = make_config("smoke", str(planted_table), **SMALL)
    return Workspace(config, tmp_path_factory.mktemp("runs"), computes=False)


def test_a_backbone_without_shared_heads_is_planned_too(planned, any_backbone):
    work = place(planned, any_backbone)
    shape = plan.Shape(work, machine())
    heads = {"gpt2": 4, "gpt_neox": 4}.get(shape.config.model_type, 2)
    tokens = shape.hybrid[:, 0].mean()
    assert shape.kept_bytes(10) == pytest.approx(10 * tokens * 2 * 2 * heads * 8 * 4)  # 2 layers of keys and values
    assert plan.make_plan(work, machine()).fits


def machine(memory=2**34):
    return Machine("cpu", torch.float32, memory, 1e11)


def place(work, backbone, **changes):
    return Workspace(change_config(work.config, {"backbone": str(backbone), "dtype": "float32", **changes}), work.root)


def test_operations_and_kept_bytes_are_those_of_a_real_step(planned, deep):
    work = place(planned, deep, **{"lora.dropout": 0.0})
    lm = add_lora(open_language_model(str(deep), "float32"), work.config.lora, 0)
    row = without_prefix(lm.tokenize(Prompt("The user likes A.", " Film X? Answer:")))
    own = {p.untyped_storage()._cdata for p in lm.model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        alive.append(tensor)
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda t: t):
        log_odds(lm, [row] * BATCH).sum().backward()
    found = plan.Shape(work, machine()).stage1(0, len(row)) * BATCH
    answers = 6 * BATCH * lm.width  # the two answer rows, which the plan leaves out
    assert found.operations == pytest.approx(counter.get_total_flops(), abs=answers)
    assert found.kept == pytest.approx(sum(kept.values()), rel=0.02)


def test_a_plan_counts_parameters_rows_and_tokens(planned, deep):
    work = place(planned, deep)
    found = plan.make_plan(work, machine())
    model = AutoModelForCausalLM.from_pretrained(deep)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() for p in model.model.layers.parameters())
    lm = wrap_language_model(model, open_language_model(str(deep)).tokenizer, choose_placement("float32"))
    adapted = add_lora(lm, work.config.lora, 0).model
    assert found.adapter == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    steps = {step.name: step for step in found.steps}
    assert steps["stage 1, LoRA"].rows == work.config.stage1.rows == 32
    assert steps["stage 3, scoring"].rows == len(work.part("valid")) + len(work.part("test"))
    assert steps["distilling items"].rows == work.dataset.n_items
    reading, *computing = found.steps
    assert reading.name == "reading the weights" and reading.weights == 4 * found.parameters and not reading.operations
    assert steps["stage 1, LoRA"].trained == 16 * found.adapter
    for step in found.steps:
        assert step.memory == plan.RUNTIME + step.weights + step.trained + step.activations
    for step in computing:
        assert step.weights == reading.weights and step.activations > 0
        assert step.operations > 2 * 0.9 * step.tokens * weights
        assert found.seconds(step) == step.operations / (plan.SHARE * 1e11)
    assert steps["prefix cache"].rows == steps["stage 3, scoring"].rows + work.config.stage3.rows
    anew = {s.name: s for s in plan.make_plan(place(planned, deep, prefix_gib=0.0), machine()).steps}
    assert "prefix cache" not in anew
    for name in ("stage 1, scoring", "stage 3, soft tokens", "stage 3, scoring"):
        assert steps[name].operations < anew[name].operations and steps[name].tokens < anew[name].tokens, name
    full = plan.make_plan(work, dataclasses.replace(machine(), room=1.0))
    assert [s.name for s in full.steps] == list(anew)  # no room for prefixes on the disk
    kept, computed_anew = plan.described(found, "deep"), plan.described(full, "deep")
    assert "Prefix cache: 0.0 GiB of disk, 50.0 allowed" in kept and "too little" not in kept
    assert "too little, every step computes prefixes for itself" in computed_anew
    on_gpu = dataclasses.replace(machine(), device="cuda")
    for held, changes in (
        (True, {"evaluations": 2}),
        (False, {"evaluations": 1}),
        (True, {"epochs": 2, "evaluations": 2}),
    ):
        again = work.variant({f"stage3.{name}": times for name, times in changes.items()})
        assert ("of which a GPU holds what" in plan.described(plan.make_plan(again, on_gpu), "deep")) == held
    turns = {
        s.name: s for s in plan.make_plan(place(planned, deep, **{"stage3.order": "warm,user+item"}), machine()).steps
    }
    for name, times in (("stage 3, soft tokens", 2), ("stage 3, validation", 2), ("stage 3, scoring", 1)):
        assert turns[name].rows == times * steps[name].rows, name
    lines = {line[:22].strip(): line[22:].split() for line in plan.described(found, "tiny").splitlines()}
    tuned = steps["stage 1, LoRA"]
    assert set(steps) < set(lines) and lines["together"][-1] == f"{found.memory / 2**30:.2f}"
    parts = (tuned.memory, tuned.weights, tuned.trained, tuned.activations)
    assert lines["stage 1, LoRA"][-4:] == [f"{part / 2**30:.2f}" for part in parts]


def test_weights_are_read_in_float32_unless_the_files_hold_the_working_format(planned, deep, tmp_path):
    half = dataclasses.replace(machine(), dtype=torch.bfloat16)
    of_float32 = plan.make_plan(place(planned, deep), half)
    assert of_float32.steps[0].weights == 4 * of_float32.parameters
    assert of_float32.steps[1].weights == 2 * of_float32.parameters
    model = AutoModelForCausalLM.from_pretrained(deep, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    open_language_model(str(deep)).tokenizer.save_pretrained(tmp_path)
    of_bfloat16 = plan.make_plan(place(planned, tmp_path), half)
    assert of_bfloat16.steps[0].weights == of_bfloat16.steps[1].weights == 2 * of_bfloat16.parameters
    for dtype, read in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        assert open_language_model(str(tmp_path), dtype).embedding.weight.dtype == read
    assert open_language_model(str(deep), "bfloat16").embedding.weight.dtype == torch.float32


def test_what_cannot_fit_is_refused_with_the_setting_that_would(planned, deep):
    work = place(planned, deep)
    whole = plan.make_plan(work, machine())
    halved = plan.make_plan(place(planned, deep, **{"stage1.accumulate": 2, "stage3.accumulate": 2}), machine())
    little = machine(memory=int((whole.memory + halved.memory) / 2))
    found = plan.make_plan(work, little)
    assert whole.fits and not found.fits
    change = plan.what_would_fit(work, little)
    assert change == {"stage1.accumulate": 2, "stage3.accumulate": 2}
    message = str(plan.refusal(found, change))
    assert "stage 1, LoRA needs" in message and "This would fit: --stage1.accumulate 2 --stage3.accumulate 2" in message
    assert plan.what_would_fit(work, machine(memory=1)) is None
    assert "a machine with more memory is needed" in str(plan.refusal(found, None))


def test_checkpointing_keeps_less_computes_more_and_gives_the_same_gradients(planned, deep):
    shape = plan.Shape(place(planned, deep), machine())
    usual, saving = shape.stage1(0, 60), shape.checkpointed(0, 60)
    assert saving.kept < 0.6 * usual.kept and usual.operations < saving.operations < 1.6 * usual.operations

    def gradients(checkpointing):
        settings = LoraSettings(dropout=0.0, checkpointing=checkpointing)
        lm = add_lora(open_language_model(str(deep), "float32"), settings, 0)
        lm.model.train()
        rows = [without_prefix(lm.tokenize(Prompt("The user likes A.", f" Film {n}? Answer:"))) for n in range(3)]
        log_odds(lm, rows).sum().backward()
        return {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.requires_grad}

    plain, again = gradients(False), gradients(True)
    assert any(g.abs().sum() > 0 for g in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_the_papers_backbone_is_planned_without_its_weights(planned, deep, tmp_path, tokenizer):
    shape = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28)
    Qwen2Config(**shape, num_key_value_heads=4, vocab_size=152064, dtype=torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    gpu = Machine("cuda", torch.bfloat16, 140 * 2**30, 7e14)
    found = plan.make_plan(place(planned, tmp_path), gpu)
    assert found.parameters == pytest.approx(7.6e9, rel=0.01) and found.fits
    assert found.memory > 2 * found.parameters
    packed = plan.make_plan(place(planned, tmp_path), dataclasses.replace(gpu, nf4=True))
    linear = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert found.memory - packed.memory == pytest.approx(linear * (2 - 0.516))
    assert plan.what_would_fit(place(planned, tmp_path), machine(memory=2**33)) is None
    for cramped, lighter in ((machine(22 * 2**30), "bfloat16"), (dataclasses.replace(gpu, memory=14 * 2**30), "nf4")):
        whole = plan.make_plan(place(planned, tmp_path), cramped)
        change = plan.what_would_fit(place(planned, tmp_path), cramped)
        assert not whole.fits and change["dtype"] == lighter
        assert f"--dtype {lighter}" in str(plan.refusal(whole, change))


def test_the_command_prints_a_plan_for_this_machine_or_another(planted_table, llama, capsys):
    words = ["plan", "--dataset", str(planted_table), "--backbone", str(llama), "--profile", "smoke"]
    cli.main(words)
    said = capsys.readouterr().out
    assert "stage 3, soft tokens" in said and re.search("(float32|bfloat16) on cpu", said)
    cli.main([*words, "--device", "cuda", "--memory", "80", "--tflops", "400"])
    of_gpu = capsys.readouterr().out
    assert "bfloat16 on cuda" in of_gpu and TOO_SMALL in of_gpu and TOO_SMALL not in said
    work = Workspace(make_config("smoke", str(planted_table), backbone=str(llama)))
    small = plan.make_plan(work, Machine("cuda", torch.bfloat16, 2**36, 4e14))
    assert TOO_SMALL not in described(dataclasses.replace(small, parameters=7_000_000_000), "as large as 7B")
    cli.main([*words, "--device", "cuda", "--memory", "24", "--tflops", "100", "--processes", "4", "--split"])
    assert "each of 4 processes: 24.0 GiB free" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="name their number with --processes"):
        cli.main([*words, "--split"])
    with pytest.raises(SystemExit, match="needs all of --device"):
        cli.main([*words, "--device", "cuda"])
    with pytest.raises(SystemExit, match=r"needs .* GiB, 0\.0 are free"):
        cli.main([*words, "--memory", "0.001", "--tflops", "1"])


def test_another_machine_is_named_whole_and_this_one_is_measured():
    assert 1e9 < matmul_rate(torch.device("cpu"), torch.float32) < 1e15
    assert isinstance(describe_machine("float32"), Machine) and describe_machine("float32").memory > 2**28
    with pytest.raises(SellarecError, match="needs all of"):
        describe_machine(device="tpu", memory=1.0, tflops=1.0)
    with pytest.raises(SellarecError, match=r"dtype 'bf16' is not known\. Valid: auto, float32, bfloat16"):
        describe_machine("bf16", device="cuda", memory=1.0, tflops=1.0)
    for number in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SellarecError, match=r"--tflops is .*; it must be above 0"):
            describe_machine(device="cpu", memory=1.0, tflops=number)
        with pytest.raises(SellarecError, match=r"--memory is .*; it must be above 0"):
            describe_machine(memory=number, tflops=1.0)


@pytest.mark.parametrize(
    ("listed", "group", "files"),
    [
        ("0::/job/step\n", "job", ("memory.max", "memory.current", "inactive_file 300\n")),
        ("5:cpu:/x\n4:memory:/job\n", "memory/job", (*V1_FILES, "inactive_file 9\ntotal_inactive_file 300\n")),
    ],
    ids=["version 2", "version 1"],
)
def test_free_memory_is_what_a_jobs_limit_leaves(tmp_path, listed, group, files):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   8 kB\n")
    assert _free_memory(tmp_path) == 8192
    (tmp_path / "proc/self/cgroup").write_text(listed)
    folder = tmp_path / "sys/fs/cgroup" / group
    (folder / "step").mkdir(parents=True)
    for name, text in zip((*files[:2], "memory.stat"), ("5000\n", "1000\n", files[2]), strict=True):
        (folder / name).write_text(text)
    (folder / "step/memory.max").write_text("max\n")
    assert _free_memory(tmp_path) == 5000 - (1000 - 300)
    (folder / files[0]).write_text("max\n" if "max" in files[0] else str(2**63))
    assert _free_memory(tmp_path) == 8192


def test_several_processes_share_the_work_and_split_weights(planned, deep):
    one = dataclasses.replace(machine(), device="cuda")  # a CPU's peak is reading the weights
    four, work = dataclasses.replace(one, processes=4), place(planned, deep)
    alone, together = plan.make_plan(work, one), plan.make_plan(work, four)
    split = plan.make_plan(place(planned, deep, split=True), four)
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(deep).model.layers.parameters())
    for lone, whole, cut in zip(alone.steps, together.steps, split.steps, strict=True):
        assert lone.operations == whole.operations == cut.operations and lone.weights == whole.weights
        assert together.seconds(whole) == alone.seconds(lone) / 4
        # three quarters of the layers are elsewhere, and two of the five are there to compute one
        assert whole.memory - cut.memory == pytest.approx(4 * weights * (3 / 4 - 2 / LAYERS))
    training = {s.name: s for s in alone.steps}["stage 1, LoRA"]
    shared = {s.name: s for s in together.steps}["stage 1, LoRA"]
    activations = plan.WORK["cuda"] * plan.Shape(work, one).stage1(0, _longest(work, one)).kept
    rows = work.config.stage1.batch - -(-work.config.stage1.batch // 4)
    assert training.memory - shared.memory == pytest.approx(rows * activations - 4 * alone.adapter)
    with pytest.raises(SellarecError, match="cannot be cut"):
        plan.make_plan(place(planned, deep, split=True), dataclasses.replace(four, nf4=True))
    with pytest.raises(SellarecError, match="at least one"):
        describe_machine(processes=0)


def _longest(work, machine):
    return int(plan.Shape(work, machine).text.max(axis=0).sum())


def test_to_split_is_proposed_where_a_smaller_batch_does_not_help(planned, deep):
    small = {"stage1.batch": 4, "stage3.batch": 4}  # each process has one row already
    four, work = dataclasses.replace(machine(), device="cuda", processes=4), place(planned, deep, **small)
    whole, cut = (plan.make_plan(place(planned, deep, split=s, **small), four) for s in (False, True))
    little = dataclasses.replace(four, memory=int((whole.memory + cut.memory) / 2))
    assert plan.what_would_fit(work, little) == {"split": True}
    refused = plan.make_plan(work, little)
    assert not refused.fits and str(plan.refusal(refused, {"split": True})).endswith("This would fit: --split")
