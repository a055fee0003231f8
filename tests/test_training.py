from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import sellarec.training as training
from sellarec.errors import SellarecError
from sellarec.settings import TrainConfig
from sellarec.training import train, trainable_state


class Linear(nn.Module):
    """Logistic regression with dropout, so that the random state matters; holds a frozen parameter too."""

    def __init__(self, x):
        super().__init__()
        self.x = x
        self.layer = nn.Linear(x.shape[1], 1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, positions):
        return self.layer(nn.functional.dropout(self.x[positions], 0.2, self.training))[:, 0]


class InFloat16(Linear):
    """Gradients are held in float16 on their way, so many times as large as they arrive."""

    def __init__(self, x, factor):
        super().__init__(x)
        self.factor = factor

    def forward(self, positions):
        odds = super().forward(positions)
        if odds.requires_grad:
            odds.register_hook(lambda gradient: (gradient * self.factor).half().float() / self.factor)
        return odds


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 4)).astype(np.float32)
    return torch.from_numpy(x), (x[:, 0] > 0).astype(int)


CONFIG = TrainConfig(epochs=2, batch=8, learning_rate=0.1, evaluations=4, checkpoint_seconds=0.0)


def run(problem, folder, config=CONFIG, model=None, say=None, factor=None, **options):
    """Train on all rows and validate on them; `say(model, file)` answers in place of the model. With a factor gradients
    pass through float16."""
    x, y = problem
    torch.manual_seed(5)
    model = model or (InFloat16(x, factor) if factor else Linear(x))
    say = say or (lambda model, _: model(np.arange(64)).detach().numpy())
    log = []
    folder.mkdir(exist_ok=True)
    validate = lambda file: (y, say(model, file))  # noqa: E731
    best = train(model, y, np.arange(64) + 1000, validate, config, 0, folder, log=log.append, **options)
    return model, best, log


def test_training_learns_and_keeps_the_best(problem, tmp_path):
    model, best, log = run(problem, tmp_path)
    evaluations = [e["valid_auc"] for e in log if "valid_auc" in e]
    assert best == max(evaluations) > 0.9 and len(evaluations) == 4
    assert [e["step"] for e in log if "loss" in e] == list(range(1, 17))
    assert set(trainable_state(model)) == {"layer.weight", "layer.bias"}


def test_a_second_call_after_the_end_gives_the_same_result_without_a_step(problem, tmp_path, monkeypatch, capsys):
    model, best, log = run(problem, tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: pytest.fail("took a step"))
    again, best_again, log_again = run(problem, tmp_path)
    assert (best_again, log_again) == (best, log) and "going on" not in capsys.readouterr().out
    assert torch.equal(model.layer.weight, again.layer.weight)


def test_a_checkpoint_of_other_batches_is_refused(problem, tmp_path):
    run(problem, tmp_path)
    with pytest.raises(SellarecError, match=r"checkpoint of other rows or batches.*Remove it"):
        run(problem, tmp_path, lengths=np.arange(64))
    next(tmp_path.glob("best-*")).rename(tmp_path / "best.safetensors")  # as an earlier version named it
    with pytest.raises(SellarecError, match="from another version of this code"):
        run(problem, tmp_path)


@pytest.mark.parametrize("rows", [9, 12])
def test_a_last_batch_with_fewer_rows_than_parts_is_no_problem(problem, tmp_path, rows):
    x, y = problem
    log = []
    model = Linear(x[:rows])
    config = TrainConfig(batch=8, accumulate=4, evaluations=1)
    train(model, y[:rows], np.arange(rows), lambda _: (y[:8], np.arange(8)), config, 0, tmp_path, log=log.append)
    assert [e["step"] for e in log if "loss" in e] == [1, 2]


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize(("killed_at", "scales"), [(1, False), (7, False), (7, True), (11, False)])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(problem, tmp_path, monkeypatch, killed_at, scales):
    def run_it(folder):
        return run(problem, folder, scales_loss=scales, factor=2**6 if scales else None)

    whole, best, log = run_it(tmp_path / "whole")
    saves = []
    save = training._save_checkpoint

    def save_then_die(accelerator, checkpoint):
        save(accelerator, checkpoint)
        saves.append(1)
        if len(saves) == killed_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save_checkpoint", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        run_it(tmp_path / "killed")
    resumed, best_again, log_again = run_it(tmp_path / "killed")
    assert len(saves) == 16
    assert best_again == best and log_again == log
    for name, value in trainable_state(whole).items():
        assert torch.equal(value, trainable_state(resumed)[name])


def test_a_kill_during_validation_asks_the_same_weights_for_the_same_file_again(problem, tmp_path):
    asked = []

    def say(model, file):
        asked.append((file.name, model.layer.weight.detach().clone()))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return np.arange(64)

    with pytest.raises(KeyboardInterrupt):
        run(problem, tmp_path, say=say)
    run(problem, tmp_path, say=say)
    assert [name for name, _ in asked] == [f"validation-{step}.npy" for step in (4, 8, 8, 12, 16)]
    assert torch.equal(asked[1][1], asked[2][1]) and not torch.equal(asked[1][1], asked[0][1])


def test_the_launchers_number_format_changes_nothing(problem, tmp_path, monkeypatch):
    _, _, log = run(problem, tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert run(problem, tmp_path / "launched")[2] == log


def test_the_best_weights_are_those_of_the_checkpoint_also_if_a_replay_finds_them_worse(problem, tmp_path, monkeypatch):
    """A kill comes after the second evaluation and before its checkpoint, and done again, as it may be on a GPU, that
    evaluation is not the best."""
    _, y = problem
    evaluated = []

    def tune(answers):
        def say(model, _):
            evaluated.append(trainable_state(model)["layer.weight"])
            return answers.pop(0)

        model, best, _ = run(problem, tmp_path, say=say)
        return best, trainable_state(model)["layer.weight"]

    save, constant = training._save_checkpoint, np.zeros(64)

    def die_at_step_8(accelerator, checkpoint):
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        save(accelerator, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save_checkpoint", die_at_step_8)
        with pytest.raises(KeyboardInterrupt):
            tune([constant, y])
    best, weight = tune([-y, -y, -y])
    assert best == 0.5 and torch.equal(weight, evaluated[0]) and not torch.equal(weight, evaluated[1])
    assert [f.name for f in tmp_path.glob("best-*")] == ["best-4.safetensors"]


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(problem, tmp_path, monkeypatch):
    whole, _, log = run(problem, tmp_path / "whole")
    saved = []

    def die_half_way(tensors, path):
        if "checkpoint.new" in str(path):
            saved.append(path)
            if len(saved) == 5:
                path.write_bytes(b"half")
                raise KeyboardInterrupt
        save_file(tensors, path)

    monkeypatch.setattr(training, "save_file", die_half_way)
    with pytest.raises(KeyboardInterrupt):
        run(problem, tmp_path / "killed")
    resumed, _, log_again = run(problem, tmp_path / "killed")
    assert log_again == log
    assert torch.equal(trainable_state(whole)["layer.weight"], trainable_state(resumed)["layer.weight"])


def test_a_kill_between_the_two_renames_goes_on_from_the_old_checkpoint(problem, tmp_path, monkeypatch, capsys):
    whole, _, log = run(problem, tmp_path / "whole")
    rename, renamed = Path.rename, []

    def die_after_moving_the_old_one_away(path, target):
        rename(path, target)
        renamed.append(target)
        if sum(t.name == "checkpoint.old" for t in renamed) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die_after_moving_the_old_one_away)
        with pytest.raises(KeyboardInterrupt):
            run(problem, tmp_path / "killed")
    capsys.readouterr()
    resumed, _, log_again = run(problem, tmp_path / "killed")
    assert "going on from step 4 of 16" in capsys.readouterr().out
    assert log_again == log
    assert torch.equal(trainable_state(whole)["layer.weight"], trainable_state(resumed)["layer.weight"])


@pytest.mark.parametrize("scales", [False, True])
def test_accumulated_steps_equal_whole_ones(problem, tmp_path, scales):
    x, _ = problem

    class Plain(Linear):
        def forward(self, positions):
            return self.layer(self.x[positions])[:, 0]

    torch.manual_seed(1)
    first, second = Plain(x), Plain(x)
    second.load_state_dict(first.state_dict())
    run(problem, tmp_path / "a", TrainConfig(batch=16, evaluations=1), first)
    run(problem, tmp_path / "b", TrainConfig(batch=16, evaluations=1, accumulate=4), second, scales_loss=scales)
    torch.testing.assert_close(first.layer.weight, second.layer.weight, atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_with_step_rows_and_advice(problem, tmp_path):
    x, y = problem
    broken = x.clone()
    broken[17] = float("nan")
    with pytest.raises(SellarecError, match=r"loss of step \d+, rows \[.*1017.*\]: .+ lower the learning rate"):
        run((broken, y), tmp_path)


def test_losses_that_are_asked_for_together_change_nothing(problem, tmp_path, monkeypatch):
    one, _, log = run(problem, tmp_path / "each")
    monkeypatch.setattr(training, "READ_TOGETHER", {"cpu": 3})
    seldom, _, log_again = run(problem, tmp_path / "seldom")
    assert log_again == log and torch.equal(one.layer.weight, seldom.layer.weight)


def test_a_loss_that_is_not_finite_stops_before_anything_is_validated_or_saved(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "READ_TOGETHER", {"cpu": 100})
    x, y = problem
    broken = torch.where(torch.arange(64)[:, None] == 17, float("nan"), x)
    with pytest.raises(SellarecError, match=r"loss of step \d, rows \[.*1017.*\]"):
        run((broken, y), tmp_path, replace(CONFIG, evaluations=1), say=lambda *_: pytest.fail("validated"))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("together", [1, 3])
def test_a_validation_that_takes_longer_than_saves_are_apart_is_saved_at_once(problem, tmp_path, monkeypatch, together):
    clock, saved = [0.0], []
    monkeypatch.setattr(training, "READ_TOGETHER", {"cpu": together})
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    keep = training._save_checkpoint
    monkeypatch.setattr(training, "_save_checkpoint", lambda *a: saved.append(clock[0]) or keep(*a))

    class Slow(Linear):
        def forward(self, positions):
            clock[0] += 1.0 if self.training else 100.0
            return super().forward(positions)

    run(problem, tmp_path, replace(CONFIG, checkpoint_seconds=60.0), Slow(problem[0]))
    assert saved == [104.0, 208.0, 312.0, 416.0], "four steps, then a validation"


@pytest.mark.parametrize("together", [3, 5])
def test_a_run_that_asks_seldom_is_saved_with_all_losses_and_goes_on(problem, tmp_path, monkeypatch, together):
    monkeypatch.setattr(training, "READ_TOGETHER", {"cpu": together})
    whole, _, log = run(problem, tmp_path / "whole")
    keep, saves = training._save_checkpoint, []

    def die_after_the_third(*arguments):
        keep(*arguments)
        saves.append(arguments)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save_checkpoint", die_after_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(problem, tmp_path / "killed")
    resumed, _, log_again = run(problem, tmp_path / "killed")
    assert log_again == log and all(e.get("loss", 0) is not None for e in log)
    assert torch.equal(trainable_state(whole)["layer.weight"], trainable_state(resumed)["layer.weight"])


def test_validation_scores_that_are_not_finite_stop_with_advice(tmp_path):
    model, labels = nn.Linear(1, 1), np.array([0, 1])

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model

        def forward(self, batch):
            return self.layer(torch.ones(len(batch), 1))[:, 0]

    config = TrainConfig(batch=2, epochs=1, evaluations=1)
    with pytest.raises(SellarecError, match="scores after step 1: not every value is finite any more; lower the"):
        train(Scores(), labels, np.arange(2), lambda _: (labels, np.array([0.0, np.nan])), config, 0, tmp_path)


def test_parameters_move_at_the_rate_of_their_names(tmp_path):
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding.from_pretrained(torch.ones(8, 1), freeze=False)
            self.readout = nn.Linear(1, 1)

        def forward(self, positions):
            return self.readout(self.table(torch.as_tensor(positions)))[:, 0]

    labels = np.array([0, 1] * 4, dtype=np.int8)
    model = Scores()
    before = {n: p.clone() for n, p in model.named_parameters()}

    def validate(_):
        with torch.no_grad():
            return labels, model(np.arange(8)).numpy()

    config = TrainConfig(batch=8, epochs=1, evaluations=1, weight_decay=0.0)
    train(model, labels, np.arange(8), validate, config, 0, tmp_path, rates={"table.": 1e-6})
    with pytest.raises(ValueError, match="begins with tabel"):
        train(model, labels, np.arange(8), validate, config, 0, tmp_path / "typo", rates={"tabel.": 1e-6})
    moved = {n: (p - before[n]).abs().max().item() for n, p in model.named_parameters()}
    assert moved["table.weight"] == pytest.approx(1e-6, rel=0.1)
    assert moved["readout.bias"] <= 1e-3 and moved["readout.weight"] == pytest.approx(1e-3, rel=0.1)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_holds_every_row_once_in_full_batches(lengths, batch, epochs, seed):
    config = TrainConfig(batch=batch, epochs=epochs)
    schedule = training._batches(np.array(lengths), config, seed)
    per_epoch = -(-len(lengths) // batch)
    assert len(schedule) == epochs * per_epoch
    for e in range(epochs):
        rows = schedule[e * per_epoch : (e + 1) * per_epoch]
        assert sorted(np.concatenate(rows)) == list(range(len(lengths)))
        assert all(len(b) == batch for b in rows[:-1])


def test_rows_of_similar_length_share_a_batch_and_the_batches_come_in_random_order():
    lengths = np.random.default_rng(0).integers(50, 150, 640)

    def padding(schedule):
        return sum(lengths[b].max() * len(b) for b in schedule) / lengths.sum() - 1

    sorted_ones = training._batches(lengths, TrainConfig(batch=16), 0)
    random_ones = training._batches(np.zeros(640), TrainConfig(batch=16), 0)
    assert padding(sorted_ones) < 0.1 < 0.3 < padding(random_ones)
    means = [lengths[b].mean() for b in sorted_ones]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_gradients_too_small_for_float16_arrive_if_the_loss_is_scaled(problem, tmp_path):
    config = replace(CONFIG, weight_decay=0.0)
    exact, _, _ = run(problem, tmp_path / "exact", config)
    lost, _, _ = run(problem, tmp_path / "lost", config, factor=2**-24)
    scaled, _, _ = run(problem, tmp_path / "scaled", config, factor=2**-24, scales_loss=True)
    torch.manual_seed(5)
    assert torch.equal(lost.layer.weight, Linear(problem[0]).layer.weight)
    torch.testing.assert_close(scaled.layer.weight, exact.layer.weight, atol=1e-3, rtol=1e-2)


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_steps_whose_scaled_gradients_are_too_large_are_left_out(problem, tmp_path, monkeypatch):
    taken, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: taken.append(1) or step(*a, **k))
    model, best, log = run(problem, tmp_path, factor=2**8, scales_loss=True)
    assert 8 < len(taken) < sum("loss" in e for e in log) == 16
    assert sum(e.get("left_out", False) for e in log) == 16 - len(taken) and "left_out" not in log[-1]
    assert best > 0.8 and all(p.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("epochs", [1, 4])
def test_gradients_that_no_scale_makes_finite_stop_with_advice(problem, tmp_path, epochs):
    with pytest.raises(SellarecError, match=r"gradients in float16 are not finite\. Compute in bfloat16 or float32"):
        run(problem, tmp_path, replace(CONFIG, epochs=epochs), factor=float("inf"), scales_loss=True)
