"""The MLP over the tokens' inputs: what it reads, and what its ablations leave out."""

import numpy as np
import pytest
import torch

from sellarec.config import make_config
from sellarec.errors import SellarecError
from sellarec.settings import MLP_INPUTS
from sellarec.systems import mlp_control
from sellarec.systems.base import Workspace
from sellarec.systems.registry import TABLES, find_system
from tests.conftest import SMALL


def test_it_reads_the_named_inputs_side_by_side_and_nothing_else(small_workspace):
    rows = small_workspace.part("test").index.to_numpy()
    alone = [mlp_control._inputs(small_workspace.variant({"mlp.inputs": name}), rows) for name in MLP_INPUTS]
    torch.testing.assert_close(mlp_control._inputs(small_workspace, rows), torch.cat(alone, dim=1))
    width = dict(zip(MLP_INPUTS, (part.shape[1] for part in alone), strict=True))
    assert width["semantic"] == small_workspace.base_model.width and (width["score"], width["records"]) == (1, 4)
    for name in TABLES["controls"][1:]:
        run, read = small_workspace.run(name), find_system(name).changes["mlp.inputs"].split(",")
        assert run.tensors("mlp")["0.weight"].shape[1] == sum(width[each] for each in read)
        assert run.scores["score"].between(0, 1).all()


def test_without_what_the_tokens_lack_it_lacks_it_too(small_workspace):
    rows = small_workspace.part("test").index.to_numpy()
    fewer = small_workspace.variant({"stage3.records": False, "mlp.inputs": "records,facts"})
    only = small_workspace.variant({"mlp.inputs": "facts"})
    torch.testing.assert_close(mlp_control._inputs(fewer, rows), mlp_control._inputs(only, rows))
    neither = fewer.variant({"stage3.facts": False})
    with pytest.raises(SellarecError, match="leaves the MLP nothing to read"):
        neither.run("mlp_control")
    assert neither.run("mlp_records").folder == small_workspace.run("mlp_records").folder


def test_on_counts_and_genres_it_needs_no_language_model(planted_table, tmp_path):
    config = make_config("smoke", str(planted_table), backbone="nobody/has-this", **SMALL)
    run = Workspace(config, tmp_path).run("mlp_records")
    assert "no-llm" in run.folder.parts and not list(tmp_path.glob("*/*/tallrec"))


def test_another_start_is_another_network_over_the_same_stages(small_workspace):
    first, again = small_workspace.run("mlp_records"), small_workspace.variant({"mlp.start": 1})
    assert not np.array_equal(first.scores["score"], again.run("mlp_records").scores["score"])
    assert again.run("sella_collab").folder == small_workspace.run("sella_collab").folder


def test_a_diverging_one_is_named_with_what_to_do(planted_table, tmp_path):
    changes = {**SMALL, "mlp.learning_rate": 1e30}
    work = Workspace(make_config("smoke", str(planted_table), **changes), tmp_path)
    with pytest.raises(SellarecError, match=r"MLP, scores of epoch \d+: not every .+ lower mlp\.learning_rate"):
        work.run("mlp_records")


@pytest.mark.parametrize(("inputs", "message"), [("records,semantics", "Did you mean 'semantic'"), ("", "Valid: vec")])
def test_an_unknown_input_is_named(inputs, message):
    with pytest.raises(SellarecError, match=message):
        make_config("smoke", **{"mlp.inputs": inputs})
