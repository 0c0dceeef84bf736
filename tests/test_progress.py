"""Where no terminal shows a bar, lines say how far the work is."""

from types import SimpleNamespace

import pytest

from lottery import progress


def test_plain_lines_say_how_fast_and_for_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress.progress_bar("prune", 14e9, "bytes") as advance:
        for _ in range(4):
            advance(3.1e9)
    assert capsys.readouterr().err.splitlines() == [
        "prune",
        "prune: 6.20 of 14.00 GB, 200 MB/s, 39 s left",
        "prune: 12.40 of 14.00 GB, 200 MB/s, 8 s left",
    ]
    clock = iter([0.0, 30.0])
    with progress.progress_bar("evaluate", 54) as advance:
        advance(20, "perplexity 71.38")
    assert capsys.readouterr().err.splitlines()[1] == "evaluate: 20 of 54, 51 s left, perplexity 71.38"
