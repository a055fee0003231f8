"""LightGCN, SASRec and DIN: hand-computed cases, invariances, and taste planted in data."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import TruncatedSVD

from sellarec.collab import fit
from sellarec.collab.din import DIN, Dice
from sellarec.collab.fit import fit_collab, predict, user_and_item
from sellarec.collab.lightgcn import LightGCN
from sellarec.collab.mf import MatrixFactorization
from sellarec.collab.sasrec import SASRec
from sellarec.config import make_config
from sellarec.data.open import open_dataset
from sellarec.errors import SellarecError
from sellarec.evaluation import auc
from sellarec.settings import FitConfig
from sellarec.systems.base import Workspace
from sellarec.systems.collaborative import with_history
from sellarec.systems.mf import new_mf
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def data(planted_table):
    return open_dataset(str(planted_table))


def test_padded_histories_are_the_histories(data):
    rows = np.arange(len(data.interactions))
    for length in (1, 4, 30):
        padded = data.padded_histories(rows, length)
        assert padded.shape == (len(rows), length) and padded.dtype == np.int64
        for row in rows:
            expected = data.history(row, length)
            assert padded[row].tolist() == [0] * (length - len(expected)) + expected.tolist()


def test_lightgcn_averages_a_node_with_its_normalized_neighbours():
    # users 1 and 2 like item 1, user 1 likes item 2; item 3 has no edge
    model = LightGCN(2, 3, (torch.tensor([1, 2, 1]), torch.tensor([1, 1, 2])), dim=1, layers=1)
    with torch.no_grad():
        model.embedding.weight[:, 0] = torch.tensor([9.0, 1.0, 2.0, 9.0, 3.0, 4.0, 5.0])  # users 0-2, items 0-3
    nodes = model.node_vectors()[:, 0].detach()
    assert nodes[1].item() == pytest.approx((1 + 3 / 2 + 4 / 2**0.5) / 2)  # degrees: user 1 two, item 1 two, item 2 one
    assert nodes[2].item() == pytest.approx((2 + 3 / 2**0.5) / 2)
    assert nodes[3 + 3].item() == pytest.approx(5 / 2)
    assert model(torch.tensor([2]), torch.tensor([3])).item() == pytest.approx((2 + 3 / 2**0.5) / 2 * 5 / 2)


def test_lightgcn_counts_a_repeated_like_twice_and_keeps_the_graph_out_of_its_state():
    model = LightGCN(1, 2, (torch.tensor([1, 1, 1]), torch.tensor([1, 1, 2])), dim=2, layers=3)
    assert list(model.state_dict()) == ["embedding.weight"]
    weights = model.graph.to_dense()
    assert weights[1, 3].item() == pytest.approx(2 / (3 * 2) ** 0.5)  # degrees: user 1 three, item 1 two
    assert weights[4, 1].item() == pytest.approx(1 / 3**0.5) and torch.equal(weights, weights.T)


def test_sasrec_reads_the_order_ignores_the_user_and_stands_an_empty_history():
    torch.manual_seed(0)
    model = SASRec(9, length=4, dim=8).eval()
    item = torch.tensor([3, 3, 3, 3])
    history = torch.tensor([[0, 0, 1, 2], [0, 0, 2, 1], [0, 0, 1, 2], [0, 0, 0, 0]])
    first, swapped, again, empty = model(torch.tensor([1, 1, 5, 1]), item, history).tolist()
    assert first == pytest.approx(again) and first != pytest.approx(swapped) and np.isfinite(empty)


def test_sasrec_is_causal_and_padding_has_no_place_of_its_own():
    torch.manual_seed(0)
    model = SASRec(9, length=4, dim=8).eval()
    block = model.blocks[0]
    states = torch.randn(1, 4, 8)
    later = states.clone()
    later[0, 3] += 1.0
    future = torch.ones(4, 4, dtype=torch.bool).triu(1)
    first, second = block(states, states, future)[0], block(later, later, future)[0]
    torch.testing.assert_close(first[:3], second[:3])
    assert not torch.allclose(first[3], second[3])
    torch.testing.assert_close(block(states[:, -1:], states, None)[0, 0], first[3])  # as the last block does
    before = model.last_state(torch.tensor([[0, 0, 1, 2]]))
    with torch.no_grad():
        model.position_embedding.weight[:2] += 100.0  # the places that only padding takes here
    torch.testing.assert_close(model.last_state(torch.tensor([[0, 0, 1, 2]])), before)


def test_a_last_batch_of_one_row_joins_the_one_before():
    sizes = [len(b) for b in fit.batches(torch.arange(9), 4)]
    assert sizes == [4, 5] and [len(b) for b in fit.batches(torch.arange(1), 4)] == [1]


def test_din_gives_padding_no_weight_and_softmaxes_nothing():
    torch.manual_seed(0)
    model = DIN(4, 9, dim=8).eval()
    user, item = torch.tensor([1]), torch.tensor([3])
    short, padded = torch.tensor([[1, 2]]), torch.tensor([[0, 0, 0, 1, 2]])
    torch.testing.assert_close(model(user, item, short), model(user, item, padded))
    twice = model(user, item, torch.tensor([[1, 2, 1, 2]]))
    assert not torch.isclose(twice, model(user, item, short))  # weights add up instead of sharing one


def test_dice_is_half_a_leaky_unit_at_the_mean():
    dice = Dice(2).eval()
    torch.testing.assert_close(dice(torch.tensor([[0.0, 20.0]])), torch.tensor([[0.0, 20.0]]))
    with torch.no_grad():
        dice.alpha += 0.5
    assert dice(torch.tensor([[0.0, -20.0]]))[0, 1].item() == pytest.approx(-10, abs=1e-4)


MODELS = {
    "lightgcn": lambda d: (LightGCN(d.n_users, d.n_items, likes(d), 16, 2), user_and_item),
    "sasrec": lambda d: (SASRec(d.n_items, 10, 16), with_history(d, 10)),
    "din": lambda d: (DIN(d.n_users, d.n_items, 16), with_history(d, 10)),
}


def likes(data):
    train = data.part("train")
    return user_and_item(train[train["label"] == 1])


@pytest.mark.parametrize("name", MODELS)
def test_planted_taste_is_found_and_rows_are_scored_alone(data, name):
    torch.manual_seed(0)
    model, inputs = MODELS[name](data)
    best = fit_collab(
        model, data, FitConfig(learning_rate=1e-2, weight_decay=0.0, epochs=60, batch=64), 0, inputs=inputs
    )
    assert best > 0.8
    valid = data.part("valid")
    scores = predict(model, inputs(valid))
    assert auc(valid["label"].to_numpy(), scores) == pytest.approx(best)
    shuffled = valid.sample(frac=1, random_state=0)
    np.testing.assert_allclose(
        predict(model, inputs(shuffled)), scores[valid.index.get_indexer(shuffled.index)], atol=1e-5
    )
    np.testing.assert_allclose(predict(model, inputs(valid.iloc[:1])), scores[:1], atol=1e-5)
    test = data.part("test")  # holds users and items that training never saw
    assert np.isfinite(predict(model, inputs(test))).all() and not set(test["user"]) <= set(data.part("train")["user"])


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_bytes(data, name):
    def weights():
        torch.manual_seed(3)
        model, inputs = MODELS[name](data)
        fit_collab(model, data, FitConfig(epochs=3, batch=64), 3, inputs=inputs)
        return model.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("killed_before", [1, 5])
def test_a_killed_training_ends_with_the_same_bytes(data, name, killed_before, tmp_path, monkeypatch, capsys):
    """Dropout, the batch's other rows in Dice, Adam's moments and a second parameter group all have to go on."""
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", -1.0)
    config = FitConfig(learning_rate=3e-2, epochs=60, batch=64, patience=6)

    def weights(killed_before=None, checkpoint=None):
        torch.manual_seed(3)
        (model, inputs), beside, log, begun = MODELS[name](data), torch.nn.Linear(4, 1), [], []

        def begin(epoch):
            if epoch == killed_before:
                raise KeyboardInterrupt
            begun.append(epoch)

        best = fit_collab(
            model,
            data,
            config,
            3,
            inputs=inputs,
            extra_loss=lambda *read: beside(torch.rand(8, 4)).square().mean(),
            extra_groups=[{"params": beside.parameters(), "lr": 1e-2}],
            each_epoch=begin,
            checkpoint=checkpoint,
            log=log.append,
        )
        return begun, {**model.state_dict(), **beside.state_dict(), "best": torch.tensor(best)}, log

    _, whole, log = weights()
    assert 5 < len(log) < 60  # patience ended it
    file = tmp_path / "scratch-fit" / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        weights(killed_before, file)
    begun, resumed, log_again = weights(checkpoint=file)
    assert begun[0] == killed_before and f"MF: going on from epoch {killed_before}" in capsys.readouterr().out
    assert log_again == log and all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert weights(checkpoint=file)[0] == []  # done: nothing is trained again


def test_squared_error_gives_the_probabilities_that_it_was_fitted_to(planted_table, tmp_path):
    changes = {**SMALL, "mf.loss": "mse", "mf.epochs": 3}
    work = Workspace(make_config("smoke", str(planted_table), **changes), tmp_path)
    model = new_mf(work.dataset, work.config.mf)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in work.run("mf").tensors("model").items()})
    said = predict(model, user_and_item(work.part("test")))
    found, inside = work.test_scores("mf"), (said >= 0.05) & (said <= 0.95)
    np.testing.assert_allclose(found[inside], said[inside], rtol=1e-6)
    assert ((found > 0) & (found < 1)).all() and (~inside).any()
    np.testing.assert_array_equal(np.argsort(found, kind="stable"), np.argsort(said, kind="stable"))


def test_a_checkpoint_of_another_model_and_a_torn_one_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", -1.0)
    file = tmp_path / "checkpoint.pt"
    one = FitConfig(epochs=1, batch=64)
    fit_collab(MatrixFactorization(data.n_users, data.n_items, 4), data, one, 0, checkpoint=file)
    other = MatrixFactorization(data.n_users, data.n_items, 8)
    with pytest.raises(SellarecError, match=r"checkpoint\.pt is damaged, or of another model.*Remove it"):
        fit_collab(other, data, one, 0, checkpoint=file)
    for damaged in (file.read_bytes()[:100], b"no checkpoint", b""):
        file.write_bytes(damaged)
        with pytest.raises(SellarecError, match="Remove it"):
            fit_collab(other, data, one, 0, checkpoint=file)


def test_mf_and_lightgcn_rank_planted_taste_as_well_as_an_outside_factorisation(tmp_path):
    """scikit-learn's truncated SVD of the training ratings, as ±1, knows nothing of our code."""
    random = np.random.default_rng(0)
    taste, kind = random.normal(size=(80, 2)), random.normal(size=(60, 2))
    user, item = (i.ravel() for i in np.indices((80, 60)))
    keep = random.random(user.size) < 0.6
    user, item = user[keep], item[keep]
    likes = (taste[user] * kind[item]).sum(axis=1) + random.normal(size=user.size) * 0.3 > 0
    table = pd.DataFrame({"user": user, "item": item, "rating": np.where(likes, 5, 1)})
    table["timestamp"] = random.permutation(len(table)) * 3600
    table["title"], table["genres"] = "Film " + table["item"].astype(str) + " (1990)", "Drama"
    table.to_csv(tmp_path / "rank2.csv", index=False)
    data = open_dataset(str(tmp_path / "rank2.csv"))
    train, test = data.part("train"), data.part("test")

    matrix = np.zeros((data.n_users + 1, data.n_items + 1))
    matrix[train["user"], train["item"]] = 2 * train["label"] - 1
    svd = TruncatedSVD(2, random_state=0)
    outside = (svd.fit_transform(matrix) @ svd.components_)[test["user"], test["item"]]
    bar = auc(test["label"].to_numpy(), outside)
    assert bar > 0.85

    torch.manual_seed(0)
    for model, rate in (
        (MatrixFactorization(data.n_users, data.n_items, 8, bias=False), 1e-2),
        (LightGCN(data.n_users, data.n_items, user_and_item(train[train["label"] == 1]), 8, 2), 3e-2),
    ):
        fit_collab(model, data, FitConfig(learning_rate=rate, weight_decay=1e-4, batch=256, epochs=150), 0)
        assert auc(test["label"].to_numpy(), predict(model, user_and_item(test))) > bar - 0.03, type(model).__name__
