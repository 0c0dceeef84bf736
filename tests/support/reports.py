"""Studies that a report is written of, and a report that was written."""

import csv
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient


@dataclass
class Made:
    """`runs`: (model, title) -> the run, of all that the study has finished; where it measured one twice, that with more."""

    client: MlflowClient
    id: str
    key: str  # the tag of its parts
    newest: str  # the run of the newer study
    runs: dict[tuple[str, str], Any]

    def metrics(self, title: str, base: str = "builtin") -> dict[str, float]:
        return self.runs[base, title].data.metrics

    def part(self, run: Any) -> str:
        return run.data.tags.get(self.key, "")

    def nll(self, title: str, base: str = "builtin") -> np.ndarray:
        local = self.client.download_artifacts(self.runs[base, title].info.run_id, "nll_per_window.npy")
        return np.load(local, allow_pickle=False)


def begin_study(name: str, study_id: str, plan: str) -> str:
    """The run of a study that nobody has done."""
    tags = {"kind": "study", "study": name, "study_id": study_id}
    run_id = MlflowClient().create_run("0", tags=tags).info.run_id
    MlflowClient().log_text(run_id, plan, "plan.json")
    return run_id


class Elements(HTMLParser):
    """Names of all elements, and the text of table cells by table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.titles: dict[str, str] = {}  # of each table: what stands above it
        self.words: list[str] = []
        self.table, self.cell = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names.add(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag == "table":
            self.table = str(given["id"]).removeprefix("table-")
            self.tables[self.table] = []
            self.titles[self.table] = " ".join([w for w in self.words if w.strip()][-2:])
        if tag == "tr":
            self.tables[self.table].append([])
        self.cell = tag in ("td", "th")
        if self.cell:
            self.tables[self.table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.cell:
            self.tables[self.table][-1][-1] += data


@dataclass
class Written:
    folder: Path
    summary: dict[str, Any]
    page: Elements


def rows_of(written: Written, base: str, windows: str = "windows of 512") -> dict[str, dict[str, str]]:
    """Of one table of tickets: title -> column -> cell."""
    for name, (head, *body) in written.page.tables.items():
        about = written.page.titles[name]
        if name.startswith("tickets-") and f"{base} Protocol" in about and windows in about:
            return {row[0]: dict(zip(head, row, strict=True)) for row in body}
    raise AssertionError((base, written.page.titles))


def read(written: Written, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((written.folder / f"tables/{name}.csv").read_text(encoding="utf-8").splitlines()))
