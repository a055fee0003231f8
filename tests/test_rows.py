"""Which training rows each stage learns from."""

import pytest

from sellarec.config import make_config
from sellarec.systems.base import Workspace
from sellarec.systems.rows import stage1_rows, stage2_rows, stage3_rows
from tests.conftest import SMALL


def test_stage_2_never_sees_the_rows_of_stage_3_unless_these_are_all(small_workspace):
    work = small_workspace
    third, second, train = stage3_rows(work), stage2_rows(work), work.dataset.part("train")
    assert len(third) == 32 and not set(third.index) & set(second.index)
    assert not set(third.index) & set(stage1_rows(work).index)
    assert len(third) + len(second) == len(train)
    for change in ({"stage2.hold_out": False}, {"stage3.rows": None}):
        other = Workspace(make_config("smoke", work.config.dataset, **{**SMALL, **change}), work.root)
        assert stage2_rows(other).index.equals(train.index)


def test_the_full_profile_leaves_stage_2_half_of_the_rows_and_the_papers_none(small_workspace):
    for profile, held_out in (("full", 150), ("full-paper", 0)):
        work = Workspace(make_config(profile, small_workspace.config.dataset), small_workspace.root)
        assert len(stage1_rows(work)) == 301 and len(stage2_rows(work)) == 301 - held_out
        assert len(stage3_rows(work)) == (held_out or 301)


def test_stage_2_says_when_it_can_hold_nothing_out(small_workspace, capsys):
    small_workspace.variant({"stage3.rows": None}).run("sella_collab")
    assert "stage 2 can hold none out" in capsys.readouterr().out
    small_workspace.variant({"stage3.rows": None, "stage2.hold_out": False}).run("sella_collab")
    assert "hold none out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stage1", "stage3", "taken", "shared"),
    [
        (100, 201, 201, 0),
        (100, 250, 250, 49),
        (301, 80, 80, 80),
        (None, None, 301, 301),
        (1000, 1000, 301, 301),
        (0.25, 0.75, 226, 0),
        (0.5, 0.75, 226, 75),
        (None, 0.001, 1, 1),
    ],
)
def test_stage_3_takes_rows_of_stage_1_only_where_the_others_are_too_few(
    small_workspace, stage1, stage3, taken, shared
):
    work = small_workspace.variant({"stage1.rows": stage1, "stage3.rows": stage3})
    first, third = stage1_rows(work).index, stage3_rows(work).index
    assert len(third) == taken and third.is_monotonic_increasing and third.is_unique
    assert len(first.intersection(third)) == shared


def test_stage_2_learns_from_all_rows_where_stage_3_would_leave_it_a_handful(small_workspace):
    held_out, none = (small_workspace.variant({"stage3.rows": n, "stage2.hold_out": True}) for n in (225, 226))
    assert len(stage2_rows(held_out)) == 301 - 225 and len(stage2_rows(none)) == 301
