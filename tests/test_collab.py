import math

import numpy as np
import pytest
import torch

from sellarec.collab.alignment import info_nce
from sellarec.collab.fit import fit_collab
from sellarec.collab.mf import MatrixFactorization, Projection
from sellarec.config import make_config
from sellarec.data.open import open_dataset
from sellarec.errors import SellarecError
from sellarec.settings import CollabConfig


@pytest.fixture(scope="module")
def data(planted_table):
    return open_dataset(str(planted_table))


def test_the_score_is_dot_product_plus_biases():
    model = MatrixFactorization(2, 2, 2)
    with torch.no_grad():
        model.user_embedding.weight[1] = torch.tensor([1.0, 2.0])
        model.item_embedding.weight[2] = torch.tensor([3.0, -1.0])
        model.user_bias[1], model.item_bias[2], model.bias.data = 0.5, -0.25, torch.tensor(0.1)
    assert model(torch.tensor([1]), torch.tensor([2])).item() == pytest.approx(1 + 0.5 - 0.25 + 0.1)
    assert model.user_features(torch.tensor([1])).tolist() == [[1.0, 2.0, 0.5]]


def test_without_biases_none_is_trained():
    model = MatrixFactorization(2, 2, 2, bias=False)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "user_embedding.weight",
        "item_embedding.weight",
    }


def test_unseen_ids_become_average_ones():
    model = MatrixFactorization(3, 3, 4)
    with torch.no_grad():
        model.user_bias.fill_(1.0)
        model.item_bias.fill_(1.0)
    model.forget_unseen(torch.tensor([1]), torch.tensor([2]))
    assert model.user_bias.tolist() == [0, 1, 0, 0] and model.item_bias.tolist() == [0, 0, 1, 0]
    assert model.user_embedding.weight[3].abs().sum() == 0 < model.user_embedding.weight[1].abs().sum()


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_planted_taste_is_found(data, loss):
    torch.manual_seed(0)
    model = MatrixFactorization(data.n_users, data.n_items, 8)
    best = fit_collab(model, data, CollabConfig(learning_rate=1e-2, epochs=80, batch=64, loss=loss), seed=0)
    assert best > 0.75


def test_the_same_seed_gives_the_same_bytes(data):
    def weights():
        torch.manual_seed(3)
        model = MatrixFactorization(data.n_users, data.n_items, 4)
        fit_collab(model, data, CollabConfig(epochs=3, batch=64), seed=3)
        return model.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_an_epoch_stays_on_the_models_device_until_it_is_over(data):
    """On "meta", as on a GPU, tensors of two devices cannot meet, and a value that is asked for is an error."""
    model = MatrixFactorization(data.n_users, data.n_items, 4).to("meta")
    projection, semantic = Projection(5, 6).to("meta"), torch.randn(data.n_items + 1, 6, device="meta")
    batches = []

    def contrast(user, item):
        batches.append(user.device.type)
        return info_nce(projection(model.item_features(item)), semantic[item], 0.2)

    groups = [{"params": projection.parameters()}]
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        fit_collab(model, data, CollabConfig(epochs=1, batch=64), 0, extra_loss=contrast, extra_groups=groups)
    assert batches == ["meta"] * math.ceil(len(data.part("train")) / 64)


def test_an_alignment_of_weight_zero_is_none_at_all(data):
    """Stage 2 leaves it out then; what is trained beside stays as it was."""

    def weights(weighted):
        torch.manual_seed(3)
        model, projection = MatrixFactorization(data.n_users, data.n_items, 4), Projection(5, 6)
        semantic, before = torch.randn(data.n_items + 1, 6), projection.layers[0].weight.detach().clone()

        def contrast(user, item):
            unique = item.unique()
            return 0.0 * info_nce(projection(model.item_features(unique)), semantic[unique], 0.2)

        groups = [{"params": projection.parameters()}]
        loss = contrast if weighted else None
        fit_collab(model, data, CollabConfig(epochs=3, batch=64), 3, extra_loss=loss, extra_groups=groups)
        assert torch.equal(projection.layers[0].weight, before)
        return model.state_dict()

    with_it, without = weights(True), weights(False)
    assert all(torch.equal(with_it[k], without[k]) for k in with_it)


def test_an_unknown_loss_and_a_diverging_one_are_named(data):
    model = MatrixFactorization(data.n_users, data.n_items, 4)
    with pytest.raises(SellarecError, match=r"setting 'stage2\.loss' cannot be 'l1'\. Valid: bce, mse"):
        make_config(**{"stage2.loss": "l1"})
    model.item_bias.data.fill_(float("nan"))
    with pytest.raises(SellarecError, match="MF, loss of epoch 0: not every value is finite any more; lower its"):
        fit_collab(model, data, CollabConfig(epochs=1), seed=0)


def test_info_nce_at_chance_is_log_n_and_zero_for_perfect_alignment():
    same = torch.ones(5, 3)
    assert info_nce(same, same, 0.2).item() == pytest.approx(math.log(5))
    corners = torch.eye(4)
    assert info_nce(corners, corners, 0.01).item() == pytest.approx(0, abs=1e-6)
    assert info_nce(corners, corners.roll(1, 0), 0.01).item() == pytest.approx(100, rel=1e-4)


def test_info_nce_of_a_hand_computed_pair():
    # Cosines [[1, 0], [.6, .8]] / tau 1: rows give -log softmax(1 of [1, 0]) and -log softmax(.8 of [.6, .8]).
    a, b = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    rows = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-0.2))) / 2
    columns = (math.log(1 + math.exp(-0.4)) + math.log(1 + math.exp(-0.8))) / 2
    assert info_nce(a, b, 1.0, symmetric=False).item() == pytest.approx(rows)
    assert info_nce(a, b, 1.0).item() == pytest.approx((rows + columns) / 2)


def test_equation_8_as_printed_is_a_constant_without_gradient():
    """The mean over i of -exp(cos_ii / tau) / sum_j exp(cos_jj / tau): these ratios sum to one. It is why the logarithm
    and the usual denominator are in `info_nce`."""
    torch.manual_seed(0)
    projected, semantic = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    loss = -torch.softmax(torch.cosine_similarity(projected, semantic) / 0.2, dim=0).mean()
    loss.backward()
    assert loss.item() == pytest.approx(-1 / 6)
    assert projected.grad.abs().max() < 1e-7
    projected.grad = None
    info_nce(projected, semantic, 0.2).backward()
    assert projected.grad.abs().max() > 1e-2


def test_the_projection_has_two_layers_and_biases():
    layers = Projection(5, 7).layers
    assert [tuple(p.shape) for p in layers.parameters()] == [(20, 5), (20,), (7, 20), (7,)]
    assert np.isclose(layers[1](torch.tensor(1.0)).item(), 0.8413, atol=1e-4)  # GELU(1) = 1 x Phi(1)
