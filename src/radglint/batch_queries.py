"""The file of queries of a batch run: one a line, `#` begins a comment, empty lines do not count."""

from __future__ import annotations

from pathlib import Path

from radglint.errors import ConfigError, QueryError
from radglint.manifest_files import decode
from radglint.query import parse_query


def read_queries(path: Path) -> list[str]:
    """The queries, in order.

    Raises:
        ConfigError: missing, not UTF-8, or without a query.
        QueryError: lines that cannot be asked, or that are there twice; all of them, with their numbers.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the queries cannot be read ({error.strerror}); check the path") from error
    first: dict[str, int] = {}
    problems: list[str] = []
    for row, line in enumerate(decode(path, content).splitlines(), start=1):
        query = line.partition("#")[0].strip()
        if query:
            problem = _problem(query, first.get(query))
            if problem:
                problems.append(f"line {row}: {problem}")
            first.setdefault(query, row)
    if problems:
        raise QueryError(f"{path}: {'; '.join(problems)}")
    if not first:
        raise ConfigError(f'{path}: no query in it; write one a line, for example "pleural effusion"')
    return list(first)


def _problem(query: str, before: int | None) -> str:
    """Why a line cannot be asked; empty if it can."""
    if before is not None:
        return f"{query!r} is in line {before} already; ask it once"
    try:
        parse_query(query)
    except QueryError as error:
        return str(error)
    return ""
