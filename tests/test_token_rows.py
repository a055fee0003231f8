"""Prompts as token ids: where they are cut, what they share, and in which batches they are computed."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sellarec.backbone.token_rows import TokenRow, cut_where_they_part, plan_batches, share_starts


def test_prompts_are_cut_where_they_part():
    row, other = TokenRow((1, 2), (3, 4, 5)), TokenRow((1,), (2, 3, 9, 9))
    assert cut_where_they_part(row, other) == TokenRow((1, 2, 3), (4, 5))
    assert cut_where_they_part(row, row) == TokenRow((1, 2, 3, 4), (5,)), "a suffix is never empty"
    assert cut_where_they_part(row, TokenRow((), (7,))) == TokenRow((), (1, 2, 3, 4, 5))


def test_questions_about_one_user_share_the_words_that_they_begin_with():
    a, b, c, d, e, f, soft = range(60, 67)
    first, second = TokenRow((a, b), (c, d, e, f)), TokenRow((a, b), (c, d, f))
    alone, bare = TokenRow((e,), (c, d)), TokenRow((), (c, d))
    assert share_starts([first, alone, second, bare, bare], [soft]) == [
        *(TokenRow((a, b, c, d), (e, f)), alone, TokenRow((a, b, c, d), (f,)), bare, bare)
    ]
    assert share_starts([second, second], [soft]) == [TokenRow((a, b, c, d), (f,))] * 2, "a suffix is never empty"
    with_soft = TokenRow((a,), (c, soft, d))
    assert share_starts([with_soft] * 2, [soft]) == [TokenRow((a, c), (soft, d))] * 2, "rows have their own vectors"


def ids(least):
    return st.lists(st.integers(0, 2), min_size=least, max_size=6).map(tuple)


ROWS = st.lists(st.builds(TokenRow, ids(0), ids(1)), min_size=1, max_size=30)


@given(ROWS, st.integers(1, 60))
def test_batches_hold_every_row_once_within_the_budget_and_keep_equal_prefixes_together(rows, budget):
    batches = plan_batches(rows, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
    for batch in ([rows[i] for i in at] for at in batches):
        prefixes = {r.prefix for r in batch}
        padded = len(prefixes) * max(map(len, prefixes)) + len(batch) * max(len(r.suffix) for r in batch)
        assert padded <= budget or len(batch) == 1
    order = [rows[i].prefix for i in np.concatenate(batches)]
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes == len({*order}) - 1


@given(ROWS)
def test_what_is_shared_and_where_a_row_is_cut_leave_its_tokens_as_they_are(rows):
    whole = [r.prefix + r.suffix for r in rows]
    for changed in (share_starts(rows, [2]), [cut_where_they_part(r, rows[0]) for r in rows]):
        assert [r.prefix + r.suffix for r in changed] == whole and all(r.suffix for r in changed)
