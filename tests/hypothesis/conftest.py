"""One hypothesis that ran, which many tests look at: a chain of two rounds, a control, masks before training, lines."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lottery.files.home import home
from tests.support.hypotheses import record_of, write

OWN = {"clip": 0.9}  # in no other file of a hypothesis, so that nobody has made its trainings before
GRID = [
    {"arm": "dense", "times": [1, 2]},
    {"arm": ["rewound", "permuted"], "density": 0.64, "lr": [0.003, 0.01]},
    {"arm": ["random", "snip", "untrained"], "density": 0.64},
]
BARRIERS = [{"arm": "rewound", "density": 0.64}, {"arm": "dense", "rewind": [0, 0.05]}]


@dataclass(frozen=True)
class Ran:
    """A hypothesis that ran: its file, what its command printed, and its record."""

    preset: Path
    printed: dict[str, Any]
    said: str
    report: Path
    record: dict[str, Any]

    @property
    def ticket(self) -> dict[str, Any]:
        return next(t for t in self.record["tickets"] if t["arm"] == "rewound")

    @property
    def report_text(self) -> Path:
        (found,) = home().glob(f"hypotheses/*/hypothesis-{self.printed['run_id'][:8]}-seed0")
        return found.with_name("report.txt")

    def training(self, arm: str, **about: Any) -> dict[str, Any]:
        """The one training of an arm of which all that is true."""
        wanted = {"arm": arm, "order": 0, **about}
        (found,) = [t for t in self.record["trainings"] if wanted.items() <= t.items()]
        return found


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Result]) -> Ran:
    folder = tmp_path_factory.mktemp("hypothesis")
    preset = write(folder, "small", **OWN, question="Is this a test?", grid=GRID, barriers=BARRIERS)
    result = cli("hypothesis", "--preset", preset, "--jobs", 1, "--out", folder / "report", "--json")
    printed = json.loads(result.stdout)
    return Ran(preset, printed, result.stderr, folder / "report", record_of(printed["run_id"]))
