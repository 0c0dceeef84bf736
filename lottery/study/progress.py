"""What a person sees of a study while it runs, on stderr: a live table on a terminal, otherwise a line a ticket."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lottery.measuring.console import format_interval
from lottery.progress import PERIOD_S, redirect_progress, say

ROWS = 24  # of a live table; a terminal shows no more


class StudyProgress:
    """Counts and tells. `titles` of what is to be done, in order; a search adds to them as it goes."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.titles = list(titles)
        self.states: dict[int, tuple[str, str, str]] = {}  # (state, perplexity, ratio)
        self.at, self.stage = -1, ""
        self.began = self.last = time.monotonic()

    def begin(self, title: str) -> None:
        self.at += 1
        if self.titles[self.at : self.at + 1] != [title]:  # of a search, which is not planned ticket by ticket
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
        """About how long it will take still; what was found costs nothing and says nothing."""
        made = sum(state == "made" for state, _, _ in self.states.values())
        more = len(self.titles) - len(self.states)
        if not made or not more:
            return ""
        seconds = (time.monotonic() - self.began) / made * more
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"

    def show(self) -> None: ...


class LineProgress(StudyProgress):
    """Not on a terminal: a line for each ticket that is done, and now and then one about a long stage."""

    def end(self, state: str, metrics: dict[str, float], reason: str | None) -> None:
        super().end(state, metrics, reason)
        told = f"perplexity {format_interval(metrics, 'perplexity', 2)}" if "perplexity" in metrics else ""
        if ratio := format_interval(metrics, "perplexity_ratio", 4):
            told += f", ratio {ratio}"
        said = ": ".join(part for part in (state, reason or told) if part)
        say(f"[{self.at + 1}/{len(self.titles)}] {self.titles[self.at]}: {said}{self.left}")

    def show(self) -> None:
        if self.stage and time.monotonic() - self.last > PERIOD_S:
            self.last = time.monotonic()
            say(f"[{self.at + 1}/{len(self.titles)}] {self.titles[self.at]}: {self.stage}")


class LiveProgress(StudyProgress):
    """On a terminal. Drawn when something happens, by no thread of its own: that would take part in what is timed."""

    def __init__(self, titles: Sequence[str], live: Any) -> None:
        self.live = live
        super().__init__(titles)

    def show(self) -> None:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

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
    """Meanwhile the stages of each ticket go to the table."""
    if not sys.stderr.isatty():
        watch: StudyProgress = LineProgress(titles)
        with redirect_progress(watch.tell):
            yield watch
        return
    from rich.console import Console
    from rich.live import Live as Drawing

    with Drawing(console=Console(stderr=True), auto_refresh=False) as live:
        watch = LiveProgress(titles, live)
        with redirect_progress(watch.tell):
            yield watch
