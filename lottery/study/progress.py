"""This file shows a running study on stderr: a live table on a terminal, else one line for each ticket."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lottery.measuring.numbers import format_interval
from lottery.progress import PERIOD_S, redirect_progress, say

ROWS = 24  # the most rows of the live table, as many as a usual terminal shows


class StudyProgress:
    """Counts the tickets and keeps their states. `titles` names them in order; a search adds titles as it goes."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.titles = list(titles)
        self.states: dict[int, tuple[str, str, str]] = {}  # (state, perplexity, ratio)
        self.at, self.stage = -1, ""
        self.began = self.last = time.monotonic()

    def begin(self, title: str) -> None:
        self.at += 1
        if self.titles[self.at : self.at + 1] != [title]:  # a ticket of a search is not among the planned titles
            self.titles.insert(self.at, title)
        self.stage, self.last = "", time.monotonic()
        self.show()

    def tell(self, line: str) -> None:
        self.stage = line
        self.show()

    def end(self, state: str, metrics: dict[str, float], reason: str | None) -> None:
        ratio = format_interval(metrics, "perplexity_ratio", 4)
        self.states[self.at] = (reason or state, format_interval(metrics, "perplexity", 2), ratio)
        self.stage = ""
        self.show()

    @property
    def left(self) -> str:
        """The time that is left, estimated from the tickets that were made. Those that were found took no time."""
        made = sum(state == "made" for state, _, _ in self.states.values())
        more = len(self.titles) - len(self.states)
        if not made or not more:
            return ""
        seconds = (time.monotonic() - self.began) / made * more
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"

    def show(self) -> None: ...


class LineProgress(StudyProgress):
    """Prints a line for each finished ticket, and at times one about a long stage. It is used without a terminal."""

    def end(self, state: str, metrics: dict[str, float], reason: str | None) -> None:
        super().end(state, metrics, reason)
        figures = f"perplexity {format_interval(metrics, 'perplexity', 2)}" if "perplexity" in metrics else ""
        if ratio := format_interval(metrics, "perplexity_ratio", 4):
            figures += f", ratio {ratio}"
        outcome = ": ".join(part for part in (state, reason or figures) if part)
        say(f"[{self.at + 1}/{len(self.titles)}] {self.titles[self.at]}: {outcome}{self.left}")

    def show(self) -> None:
        if self.stage and time.monotonic() - self.last > PERIOD_S:
            self.last = time.monotonic()
            say(f"[{self.at + 1}/{len(self.titles)}] {self.titles[self.at]}: {self.stage}")


class LiveProgress(StudyProgress):
    """Draws the live table on a terminal, whenever something happens.

    It has no thread of its own, since that would disturb the measurements of speed.
    """

    def __init__(self, titles: Sequence[str], live: Any) -> None:
        self.live = live
        super().__init__(titles)

    def show(self) -> None:
        table = Table()
        for name in ("", "state", "perplexity [95%]", "ratio to dense [95%]"):
            table.add_column(name, no_wrap=name != "state", min_width=6)
        shown = max(4, min(ROWS, self.live.console.height - 7))
        first = max(0, min(self.at - shown // 2, len(self.titles) - shown))
        for i in range(first, min(first + shown, len(self.titles))):
            now = ("now", "", "") if i == self.at and i not in self.states else ("waits", "", "")
            state, *figures = self.states.get(i, now)
            style = "bold" if i == self.at else "dim" if state == "waits" else ""
            table.add_row(self.titles[i], state, *figures, style=style)
        line = f"{len(self.states)} of {len(self.titles)} done{self.left}{f'; {self.stage}' if self.stage else ''}"
        self.live.update(Group(table, Text(line, no_wrap=True, overflow="ellipsis")), refresh=True)


@contextmanager
def show_progress(titles: Sequence[str]) -> Iterator[StudyProgress]:
    """Shows a study's progress during the block. The stages of each ticket also go there."""
    if not sys.stderr.isatty():
        watch: StudyProgress = LineProgress(titles)
        with redirect_progress(watch.tell):
            yield watch
        return
    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        watch = LiveProgress(titles, live)
        with redirect_progress(watch.tell):
            yield watch
