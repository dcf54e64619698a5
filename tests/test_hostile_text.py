"""Text from outside that is made to cost time: rules stay nearly linear, what goes round in circles is refused."""

from __future__ import annotations

import contextlib
import time
from itertools import product

import pytest

from radglint.errors import QueryError
from radglint.query import MAX_QUERY_CHARACTERS, parse_query
from radglint.reports import read_report

WORDS = ("no", "not", "is", "been", "without", "(?)", "isn't", "appears", "clear", "--", "heart", "and", "?", "in")
REPORT_WORDS = (
    "]]]]]]]]",
    ".........",
    "?!?!?!",
    "no",
    "effusion.",
    "1.",
    "FINDINGS:",
    "right",
    "upper lobe nodule,",
    "\n",
    "Dr.",
    "3 mm",
    "clear;",
)


def cost_s(action, *arguments) -> float:
    """Processor time, the better of two tries: the machine may be busy."""
    times = []
    for _ in range(2):
        began = time.process_time()
        action(*arguments)
        times.append(time.process_time() - began)
    return min(times)


def parsed_or_refused(text: str) -> None:
    with contextlib.suppress(QueryError):
        parse_query(text)


@pytest.mark.parametrize("words", [(word,) for word in WORDS] + list(product(WORDS[:5], WORDS[4:8])), ids=" ".join)
def test_the_longest_query_of_repeated_words_costs_little(words):
    text = (" ".join(words) + " ") * MAX_QUERY_CHARACTERS
    assert cost_s(parsed_or_refused, text[: MAX_QUERY_CHARACTERS - 1]) < 0.6


@pytest.mark.parametrize("mark", ["=", "-", ",", ".", ";", ": ", "= -", "(", "?!", "\u2013"])
def test_a_long_run_of_marks_costs_little(mark):
    text = f"hea{mark * MAX_QUERY_CHARACTERS}"[: MAX_QUERY_CHARACTERS - 12]
    assert cost_s(parsed_or_refused, f"{text}seen nodule") < 0.6


def test_words_that_unsay_each_other_without_end_are_refused():
    with pytest.raises(QueryError, match="says and unsays its finding"):
        parse_query("no " * 300 + "effusion")
    assert parse_query("no no no effusion").phrase == "effusion"


@pytest.mark.parametrize("word", REPORT_WORDS)
def test_time_for_a_report_grows_with_its_length(word):
    short, long = (word + " ") * 300, (word + " ") * 2400
    cost = max(cost_s(read_report, short), 0.01)
    assert cost_s(read_report, long) < 8 * 3 * cost
