"""Ratios and perplexities as people read them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from lottery.measuring import numbers


@pytest.mark.parametrize(
    ("value", "most", "text"),
    [
        (1.03921, 4, "1.0392"), (0.98264, 4, "0.9826"), (0.0, 4, "0.0000"), (1.99996, 4, "2.000"), (9.9996, 4, "10.00"), (3.68036, 4, "3.680"),
        (24.6442, 4, "24.64"), (141.2331, 4, "141.2"), (2332.37, 2, "2,332"), (12345.6, 4, "12,350"),
        (5796330.2096, 4, "5,796,000"), (71.384, 2, "71.38"), (5.4712, 2, "5.47"), (103.861, 2, "103.9"),
        (float("inf"), 2, "inf"), (float("nan"), 2, "nan"),
    ],
)  # fmt: skip
def test_a_number_has_the_digits_of_its_size(value: float, most: int, text: str) -> None:
    assert numbers.format_number(value, most) == text


def test_the_ends_have_the_digits_of_the_value() -> None:
    assert numbers.format_ends(1.0392, 1.0331, 1.0456, 4) == "1.0392 [1.0331, 1.0456]"
    assert numbers.format_ends(2.0112, 1.9812, 2.0431, 4) == "2.011 [1.981, 2.043]"
    assert numbers.format_ends(103.861, 89.608, 119.58, 2) == "103.9 [89.6, 119.6]"
    assert numbers.format_ends(5796330.2, 4100321.7, 7912345.6, 4) == "5,796,000 [4,100,000, 7,912,000]"
    assert numbers.format_ends(1.5, 1.2, 2345.6, 4) == "1.5000 [1.2000, 2,346]"
    assert numbers.format_ends(5796330.2, 3.21, 7912345.6, 4) == "5,796,000 [3.21, 7,912,000]"  # no end becomes 0


@given(st.floats(2, 1e12), st.sampled_from([2, 4]))
def test_four_digits_remain(value: float, most: int) -> None:
    text = numbers.format_number(value, most)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=5.1e-4 if value > 100 or most == 4 else 2.6e-3)
    assert len(re.sub(r"[,.]|(?<=[1-9])0+$", "", text).rstrip("0")) <= 5


def test_everything_that_prints_a_broken_ticket_prints_few_digits(
    cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    few = ("--limit", 4, "--measure", "perplexity", "--register", "broken")
    broken = ("--target", "all+embeddings", "--sparsity", "0.995", *few)
    made = lottery_json("prune", *broken)
    ratio, perplexity = (made["metrics"][name] for name in ("perplexity_ratio", "perplexity"))
    assert 10 < ratio < 1000 and perplexity > 1000
    printed = [cli("prune", *broken).stdout, cli("list", "--name", "broken").stdout]
    cells = f"{numbers.format_perplexity(perplexity)} [", f"{numbers.format_ratio(ratio)} ["
    assert len(cells[1]) <= 7
    for text in printed:
        assert all(cell in text for cell in cells)
        assert not re.search(r"\d{2}\.\d{3}|,\d{3}\.\d", text.split("ticket ")[0])
