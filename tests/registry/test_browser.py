"""MLflow's own pages in a real Chromium against a real server: tickets sorted, charted, compared, and their model's card."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

from lottery.registry.views import runs_url
from tests.support.browser import PATIENCE_MS, new_page, open_browser, screenshot
from tests.support.servers import mlflow_server, needed, postgres

TICKETS = {  # made in this order, which is neither that of their ratio nor its reverse
    "builtin all 50%": ("--target", "all", "--sparsity", "0.5"),
    "builtin attention 30%": ("--target", "attention", "--sparsity", "0.3"),
    "builtin all+embeddings 99.5%": ("--target", "all+embeddings", "--sparsity", "0.995"),
    "builtin all 70% fp8": ("--target", "all", "--sparsity", "0.7", "--quantize", "fp8"),
    "builtin late 50%": ("--target", "late", "--sparsity", "0.5"),
}
BY_RATIO = [
    "builtin attention 30%",
    "builtin late 50%",
    "builtin all 50%",
    "builtin all 70% fp8",
    "builtin all+embeddings 99.5%",
]
WINNER = "builtin all 50%"
EXPERIMENT = "0"
WIDE, NARROW = ViewportSize(width=1600, height=1000), ViewportSize(width=1400, height=1000)

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needed("chromium", "/usr/bin/chromium")
    with postgres() as database, mlflow_server(tmp_path_factory.mktemp("server"), database) as running:
        yield running.url


@pytest.fixture(scope="module")
def made(server: str, lottery_json: Callable[..., dict[str, Any]]) -> Iterator[dict[str, dict[str, Any]]]:
    """Tickets of the embedded model, registered on the server: run name -> what `--json` says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        yield {
            name: lottery_json("prune", *how, "--measure", "perplexity", "--register", "ticket-seen")
            for name, how in TICKETS.items()
        }


def version(ticket: dict[str, Any]) -> str:
    return str(ticket["model_uri"]).rsplit("/", 1)[1]


@pytest.fixture(scope="module")
def browser(made: dict[str, dict[str, Any]]) -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with new_page(browser) as opened:
        yield opened


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("LOTTERY_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def top(seen: Locator) -> float:
    box = seen.bounding_box()
    assert box is not None
    return box["y"]


def run_link(page: Page, name: str) -> Locator:
    return page.get_by_role("link", name=name, exact=True)


def downwards(page: Page, names: list[str]) -> list[str]:
    """The runs as they follow each other on the screen."""
    return sorted(names, key=lambda name: top(run_link(page, name)))


def test_the_table_shows_tickets_by_ratio(
    page: Page, server: str, made: dict[str, dict[str, Any]], pictures: Path
) -> None:
    page.goto(f"{server}/#/experiments/{EXPERIMENT}/runs")
    expect(run_link(page, "dense builtin w512").first).to_be_visible()  # every kind of run, the newest first
    page.get_by_text("Model training", exact=True).click()
    page.get_by_role("button", name="Views").click()
    page.get_by_text("Tickets by ratio", exact=True).click()
    expect(page.get_by_text(re.compile(r"^\s*5\s+matching runs"))).to_be_visible()
    expect(run_link(page, "dense builtin w512")).to_have_count(0)
    page.set_viewport_size(NARROW)
    for column in ("perplexity_ratio", "sparsity_model", "perplexity", "winner", "base", "Dataset"):
        expect(page.get_by_role("columnheader", name=column, exact=True).last).to_be_in_viewport()
    assert downwards(page, list(TICKETS)) == BY_RATIO
    assert sorted(made, key=lambda name: made[name]["metrics"]["perplexity_ratio"]) == BY_RATIO
    for name, ticket in made.items():
        shown = page.get_by_text(f"{ticket['metrics']['perplexity_ratio']:.4f}"[:-1])
        assert top(shown.first) == pytest.approx(top(run_link(page, name)), abs=15)
    page.set_viewport_size(WIDE)
    screenshot(page, pictures, "table")


def test_the_charts_stay_readable_beside_a_broken_ticket(page: Page, server: str) -> None:
    page.goto(f"{server}/#/experiments/{EXPERIMENT}/runs")
    with page.context.expect_page() as opened:  # what a description links to opens in a tab of its own
        page.get_by_role("link", name="charts against sparsity").click()
    page = opened.value
    chart = page.locator(".js-plotly-plot").filter(has=page.locator(".xtitle", has_text="sparsity_model"))
    expect(chart).to_be_visible()
    expect(chart.locator(".ytitle")).to_have_text("bits_per_byte")
    expect(chart.locator(".scatterlayer .point")).to_have_count(len(TICKETS))
    page.set_viewport_size(NARROW)
    for x in ("sparsity_model", "disk_ratio"):
        title = page.get_by_text(f"{x} vs. bits_per_byte")
        expect(title).to_be_visible()
        assert title.evaluate("e => e.scrollWidth <= e.clientWidth")  # it is not cut
    # one run, one colour: to the right lies what has more zeros, further up what lost more
    points = chart.locator(".scatterlayer .point").all()
    boxes = [box for point in points if (box := point.bounding_box())]
    assert len({round(box["x"]) for box in boxes}) == len({round(box["y"]) for box in boxes}) == len(TICKETS)
    # One ticket has 85 times the perplexity of the dense model; the others still lie apart.
    heights = sorted(box["y"] for box in boxes)[1:]
    assert heights[-1] - heights[0] > 15
    whole = chart.bounding_box()
    assert whole is not None and whole["width"] > 350 and whole["height"] > 350


def test_three_runs_are_compared(page: Page, server: str, made: dict[str, dict[str, Any]], pictures: Path) -> None:
    three = BY_RATIO[1:4]
    page.goto(runs_url(server, EXPERIMENT))
    for name in three:
        page.get_by_role("row").filter(has=run_link(page, name)).get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", name="Comparing 3 Runs from 1 Experiment")).to_be_visible()
    names = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="Run Name:"))
    for name in three:
        expect(names.get_by_role("cell", name=name, exact=True)).to_be_visible()
    page.get_by_role("button", name="Visualizations").click()  # folds it up, and the rest fits on the screen
    page.get_by_role("switch", name="Parameters - Show diff only").click()
    for parameter in ("target", "sparsity", "quantize"):
        expect(page.get_by_role("rowheader", name=parameter, exact=True)).to_be_visible()
    expect(page.get_by_role("rowheader", name="pattern", exact=True)).to_have_count(0)
    label = page.get_by_role("link", name="perplexity", exact=True)
    expect(label).to_be_visible()
    names.evaluate("row => row.scrollIntoView()")  # to the top
    expect(names).to_be_in_viewport()
    expect(label).to_be_in_viewport()
    for name in three:
        value = page.get_by_text(shortened(made[name]["metrics"]["perplexity"]), exact=True)
        expect(value).to_be_in_viewport()
        assert top(value) == pytest.approx(top(label), abs=15)
    screenshot(page, pictures, "comparison")


def shortened(value: float) -> str:
    """As MLflow's page of comparisons writes a metric."""
    return f"{value:.4g}"


def test_a_model_s_page_has_versions_aliases_and_tags(
    page: Page, server: str, made: dict[str, dict[str, Any]], pictures: Path
) -> None:
    page.goto(f"{server}/#/models/ticket-seen")
    expect(page.get_by_role("heading", name="ticket-seen")).to_be_visible()
    for name, ticket in made.items():
        row = page.get_by_role("row").filter(
            has=page.get_by_role("link", name=f"Version {version(ticket)}", exact=True)
        )
        expect(row).to_contain_text(re.compile(rf"winner\s*: {ticket['tags']['winner']}"))
        expect(row).to_contain_text(re.compile(rf"ticket\s*: {ticket['ticket']}"))
        if name == WINNER:
            expect(row).to_contain_text(re.compile(r"@\s*winner"))
        else:
            expect(row).not_to_contain_text("@")
    screenshot(page, pictures, "model")


def test_a_version_s_page_has_its_card(page: Page, server: str, made: dict[str, dict[str, Any]]) -> None:
    ticket = made[WINNER]
    page.goto(f"{server}/#/models/ticket-seen/versions/{version(ticket)}")
    expect(page.get_by_role("heading", name=f"Version {version(ticket)}")).to_be_visible()
    id = MlflowClient(server).get_model_version("ticket-seen", version(ticket)).source
    expect(page.get_by_text(f'lottery.load("{id}")')).to_be_visible()
    expect(page.get_by_role("table").filter(has_text="dense").first).to_be_visible()
    expect(page.get_by_role("link", name=WINNER, exact=True)).to_be_visible()  # the run that it comes from
    page.get_by_role("link", name="builtin all 50", exact=True).click()  # its logged model
    expect(page.get_by_text("Not registered")).to_have_count(0)


def test_a_run_s_page_has_its_description(page: Page, server: str, made: dict[str, dict[str, Any]]) -> None:
    page.goto(f"{server}/#/experiments/{EXPERIMENT}/runs/{made['builtin late 50%']['run_id']}")
    table = page.get_by_role("table").filter(has_text="dense").first
    expect(table).to_be_visible()
    assert top(table.get_by_text("dense").first) < top(table.get_by_text("late 50%").first)
    expect(page.get_by_text(re.compile(r"builtin-w512")).last).to_be_visible()  # the data set as an input
