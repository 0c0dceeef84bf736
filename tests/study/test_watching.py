"""What is shown while a study goes on."""

import pytest
from rich.console import Console


def test_the_live_table(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.live import Live as Drawing

    from lottery.study.watching import Live

    console = Console(force_terminal=True, width=100, record=True)
    with Drawing(console=console, auto_refresh=False) as live:
        watch = Live(["m dense", "m mlp 50%", "m mlp 70%"], live)
        watch.begin("m dense")
        watch.end("made", {"perplexity": 71.38}, None)
        watch.begin("m mlp 50%")
        watch.tell("ticket: perplexity over 54 windows: 40%")
    shown = console.export_text()
    assert "71.38" in shown and "54 windows: 40%" in shown and "waits" in shown and "1 of 3 done" in shown
    capsys.readouterr()
