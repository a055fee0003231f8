"""Amazon-Book: the official 2018 review and metadata files → the ratings of 2017 that the papers use.

Out of core, in DuckDB: the files hold 27 million reviews and 2.9 million books. The rules are CoLLM's: reviews of
books with metadata, of the calendar year 2017 (UTC), by users and of items with more than 20 of them, counted once.
Where its order was not reproducible (timestamps have the resolution of a day), ours is the order of the file.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sellarec.errors import SellarecError
from sellarec.progress import Progress

if TYPE_CHECKING:
    import duckdb

REVIEWS, BOOKS = "Books_5.json", "meta_Books.json"
PAGE = "https://nijianmo.github.io/amazon/"
YEAR = ("2017-01-01", "2018-01-01")
MORE_THAN = 20
"""Interactions that a user or an item must exceed."""
MALFORMED = 0.001
"""Share of lines that may be malformed before the file is refused."""
MEMORY = "4GB"
"""DuckDB spills to disk beyond it."""
LONGEST_LINE = 1 << 22

PUBLISHED = {
    "reviews with metadata": 27_163_817,
    "in 2017": 3_933_994,
    "active users": 23_051,
    "active items": 34_769,
    "rows": 778_957,
    "users": 22_966,
    "items": 34_153,
}
"""Counts that CoLLM's processing of the official files gave."""


def prepare(folder: Path, target: Path) -> None:
    """Write `reviews.parquet` and `books.parquet` into `target`, and print the counts on the way.

    Args:
        folder: Holds `Books_5.json` and `meta_Books.json`, plain or with `.gz`.
        target: An empty folder; DuckDB works in it and cleans up behind itself.

    Raises:
        SellarecError: a file is missing, truncated or of another form; too many lines are malformed; the disk is full.
    """
    import duckdb  # nothing else needs it

    reviews, books = _find(folder, REVIEWS), _find(folder, BOOKS)
    database = target / "work.duckdb"
    try:
        with duckdb.connect(str(database)) as con:
            con.execute(f"SET memory_limit = '{MEMORY}'; SET temp_directory = {_quoted(target / 'spill')}")
            con.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")  # `_run` asks for it
            text = {"title": "VARCHAR", "category": "VARCHAR"}
            _read_lines(con, "book", books, {"asin": "VARCHAR"}, text)
            numbers = {"overall": "DOUBLE", "unixReviewTime": "BIGINT"}
            _read_lines(con, "review", reviews, {"reviewerID": "VARCHAR", "asin": "VARCHAR", **numbers}, {})
            counts = _select(con, target)
    except duckdb.Error as error:
        raise SellarecError(_explained(error, folder)) from error
    database.unlink()
    for name, found in counts.items():
        print_beside(name, f"{found:,}", f"{PUBLISHED[name]:,}")


def print_beside(name: str, found: str, published: str) -> None:
    """A count beside the one that was published."""
    print(f"{name:22}{found:>12}  published {published:>12}{'' if found == published else '  differs'}", flush=True)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise SellarecError(f"{folder}: there is no {name} or {name}.gz in it. Get it from {PAGE} (2018 release).")


def _read_lines(
    con: duckdb.DuckDBPyConnection, table: str, path: Path, needed: dict[str, str], optional: dict[str, str]
) -> None:
    """One row per line of a JSON-lines file: `line` from 1 and fields of the given types; refuse it if too many are
    malformed, which is: no UTF-8, no JSON, or a needed field is missing or of another type. Lines that DuckDB cannot
    read as text have no row, and are not counted in `line`."""
    fields = needed | optional
    paths = ", ".join(f"'$.{f}'" for f in fields)
    value = {f: f"TRY_CAST(field[{n}] AS {kind})" for n, (f, kind) in enumerate(fields.items(), start=1)}
    columns = ", ".join(f"{value[f]} AS {f}" for f in fields)
    missing = " ".join(f"WHEN {value[f]} IS NULL THEN 'no {f}'" for f in needed)
    source = (
        f"read_csv({_quoted(path)}, columns = {{'text': 'VARCHAR'}}, auto_detect = false, "
        f"header = false, delim = '\\0', quote = '', escape = '', max_line_size = {LONGEST_LINE}, parallel = false, "
        f"store_rejects = true, rejects_table = 'rejected_{table}', rejects_scan = 'scan_{table}')"
    )
    _run(
        con,
        f"""CREATE TABLE {table} AS
        WITH lines AS (SELECT row_number() OVER () AS line, text FROM {source}),
        parsed AS (
            SELECT line, text, CASE WHEN json_valid(text) THEN json_extract_string(text, [{paths}]) END AS field
            FROM lines WHERE text IS NOT NULL
        ),
        judged AS (SELECT *, CASE WHEN field IS NULL THEN 'not JSON' {missing} END AS wrong FROM parsed)
        SELECT line, {columns}, wrong, CASE WHEN wrong IS NOT NULL THEN text[:60] END AS excerpt FROM judged""",
        f"reading {path.name}",
    )
    lines, bad = con.execute(f"SELECT count(*), count(wrong) FROM {table}").fetchone()
    unread = con.execute(f"SELECT line, lower(error_type) FROM rejected_{table} ORDER BY line").fetchall()
    lines, bad = lines + len(unread), bad + len(unread)
    if not lines:
        raise SellarecError(f"{path}: the file has no lines. Get it again from {PAGE}.")
    first = con.execute(f"SELECT line, wrong, excerpt FROM {table} WHERE wrong IS NOT NULL ORDER BY line LIMIT 3")
    named = [f"line {n}: {wrong}" for n, wrong in unread]
    named += [f"line {n}: {wrong} ({excerpt})" for n, wrong, excerpt in first.fetchall()]
    named = "; ".join(named[:3])
    if bad > MALFORMED * lines:
        raise SellarecError(
            f"{path}: {bad:,} of {lines:,} lines are malformed, more than {MALFORMED:.1%}: {named}. "
            f"Is this the file of the 2018 release? Get it again from {PAGE}."
        )
    print(f"{path.name}: {lines:,} lines" + (f", {bad:,} malformed and left out: {named}" if bad else ""), flush=True)
    for field in optional:
        if not con.execute(f"SELECT count({field}) FROM {table}").fetchone()[0]:
            raise SellarecError(f"{path}: no line has a field '{field}'. Get the file of the 2018 release from {PAGE}.")


def _select(con: duckdb.DuckDBPyConnection, target: Path) -> dict[str, int]:
    """Apply the papers' rules, write the two tables, and count on the way."""
    steps = (
        # of a book that is listed more than once, the last line
        """CREATE TABLE catalogue AS SELECT asin AS item, coalesce(arg_max(title, line), '') AS title,
            coalesce(arg_max(category, line), '[]') AS category FROM book WHERE wrong IS NULL GROUP BY asin""",
        """CREATE VIEW joined AS SELECT line, reviewerID AS "user", asin AS item, overall AS rating,
            unixReviewTime AS timestamp FROM review WHERE wrong IS NULL AND asin IN (SELECT item FROM catalogue)""",
        f"""CREATE TABLE year AS SELECT * FROM joined
            WHERE timestamp >= epoch(TIMESTAMP '{YEAR[0]}') AND timestamp < epoch(TIMESTAMP '{YEAR[1]}')""",
        f'CREATE TABLE active_user AS SELECT "user" FROM year GROUP BY ALL HAVING count(*) > {MORE_THAN}',
        f"CREATE TABLE active_item AS SELECT item FROM year GROUP BY ALL HAVING count(*) > {MORE_THAN}",
        """CREATE TABLE kept AS SELECT * FROM year WHERE "user" IN (FROM active_user) AND item IN (FROM active_item)""",
    )
    for step in steps:
        _run(con, step, "choosing the reviews")
    order = 'SELECT "user", item, rating, timestamp FROM kept ORDER BY line'
    con.execute(f"COPY ({order}) TO {_quoted(target / 'reviews.parquet')} (FORMAT parquet)")
    books = """SELECT item, title, coalesce(category ->> '$[1]', '') AS genre FROM catalogue
        WHERE item IN (SELECT item FROM kept) ORDER BY item"""
    con.execute(f"COPY ({books}) TO {_quoted(target / 'books.parquet')} (FORMAT parquet)")
    counted = con.execute(
        """SELECT (SELECT count(*) FROM joined), (SELECT count(*) FROM year), (SELECT count(*) FROM active_user),
        (SELECT count(*) FROM active_item), count(*), count(DISTINCT "user"), count(DISTINCT item) FROM kept"""
    ).fetchone()
    return dict(zip(PUBLISHED, counted, strict=True))


def _quoted(path: Path) -> str:
    """A path as a word of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def _run(con: duckdb.DuckDBPyConnection, query: str, label: str) -> None:
    """Execute in a thread of its own, so that progress shows and Ctrl-C works."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            con.execute(query)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    with Progress(label, 100, "%") as progress:
        try:
            while thread.is_alive():
                thread.join(0.5)
                progress.advance(max(0, int(con.query_progress()) - progress.done))
        except BaseException:
            con.interrupt()
            thread.join()
            raise
    if errors:
        raise errors[0]


def _explained(error: duckdb.Error, folder: Path) -> str:
    text = " ".join(line.strip()[:200] for line in str(error).splitlines()[:3])
    if "GZIP" in text.upper():
        return f"{text}. The download broke off; get the file again from {PAGE}."
    if "no space left" in text.lower() or "max_temp_directory_size" in text:
        return f"The disk is full ({text}). About 6 GB are needed in the cache folder, beside the files themselves."
    return f"{folder} cannot be read: {text}"
