"""What a run says before and during long measuring, and how long it times."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from transformers import AutoModelForCausalLM

from lottery.measuring import speed, work
from lottery.measuring.work import Work, duration
from lottery.models.architecture import read_tokenizer
from lottery.runtime import decoding


def setup_of(*measures: str, windows: int = 0) -> Any:
    return SimpleNamespace(measures=measures, ids_NT=np.zeros((windows, 8)) if windows else None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Time that stands still until a test moves it."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(work.time, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr(work.time, "monotonic", lambda: now.seconds)
    return now


def test_one_line_says_what_will_take_how_long(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    doing = Work()
    doing.add("ticket", setup_of("perplexity", "speed", windows=100))
    doing.add("dense", setup_of("perplexity", "speed", windows=100))
    doing.add("control 1 of 1", setup_of("perplexity", windows=100))
    with doing.shown():
        doing.learn_token_seconds(lambda tokens: tokens * 0.5)
        assert capsys.readouterr().err == ""  # a window is not known yet
        with doing.stage("ticket", "perplexity", "ticket: perplexity", 100) as advance:
            clock.seconds += 20
            advance(10)  # two seconds a window
            first = capsys.readouterr().err
            clock.seconds += 40
            advance(20, "perplexity 9.00")
    assert first.splitlines()[:2] == [
        "ticket: perplexity",
        "measuring this ticket takes about 12 min more: ticket 4 min (perplexity 3 min, speed 64 s); "
        "dense 4 min (perplexity 3 min, speed 64 s); control 1 of 1 3 min (perplexity 3 min)",
    ]
    # said once; every later line counts the other models in
    again = capsys.readouterr().err.splitlines()
    assert again == ["ticket: perplexity: 30 of 100, 140 s left, perplexity 9.00, 11 min left in all"]


def test_short_work_is_not_announced(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    doing = Work()
    doing.add("ticket", setup_of("perplexity", windows=10))
    with doing.shown(), doing.stage("ticket", "perplexity", "ticket: perplexity", 10) as advance:
        clock.seconds += 1
        advance(1)
        clock.seconds += 1000  # what was short when it was announced is not announced late
        advance(1)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "ticket: perplexity" and len(said) == 2 and "2 of 10" in said[1]


def test_a_run_announces_all_its_models(
    tiny: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "LONG_S", 0.0)
    command = ("prune", "--model", tiny, "--dataset", "builtin", "--limit", 39, "--register", "none", "--control", 1)
    first = cli(*command).stderr
    line = next(line for line in first.splitlines() if line.startswith("measuring this ticket takes about"))
    assert re.search(
        r"more: ticket \d+ s \(perplexity \d+ s, samples \d+ s, speed \d+ s\); "
        r"dense \d+ s \(perplexity \d+ s, samples \d+ s, speed \d+ s\); control 1 of 1 \d+ s \(perplexity \d+ s\)$",
        line,
    )
    assert first.count("measuring this ticket") == 1
    # what an earlier run knows of the dense base takes no time
    again = cli(*command, "--sparsity", "0.6").stderr
    assert re.search(r"; dense \d+ s \(speed \d+ s\); control", again)
    # what is not measured is not announced
    quick = cli(*command, "--sparsity", "0.6", "--measure", "perplexity", "--control", 0).stderr
    assert re.search(r"more: ticket \d+ s \(perplexity \d+ s\)$", quick, re.M)


def test_a_slow_model_is_announced_by_what_it_must_take(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One prompt, some tokens and one call are timed even where that takes longer than all timing may."""
    doing = Work()
    doing.add("ticket", setup_of("speed"))
    with doing.shown():
        doing.learn_token_seconds(lambda tokens: 2.0 * tokens)
    assert "takes about 4 min more: ticket 4 min (speed 4 min)" in capsys.readouterr().err


def test_a_busy_machine_may_time_more_tokens_sooner(clock: Any) -> None:
    doing = Work()
    doing.add("ticket", setup_of("speed"))
    seconds = iter([5.0, 3.0, 1.0])
    with doing.shown():
        doing.learn_token_seconds(lambda tokens: next(seconds))
        with doing.stage("ticket", "speed", "ticket: speed") as advance:
            clock.seconds += 1
            advance()
    assert doing.left == {("ticket", "load"): 1.0}


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 8, 99, 180, 5000, 6000)] == ["0 s", "8 s", "99 s", "3 min", "83 min", "1.7 h"]


def timings(monkeypatch: pytest.MonkeyPatch, model: Any, seconds_of_token: Callable[[int], float]) -> dict[str, Any]:
    """What `speed_metrics` gives for a model whose n-th token takes so many seconds, and how much it timed."""
    now, counts = SimpleNamespace(seconds=0.0), {"prompts": 0, "tokens": 0, "calls": 0}

    class Decoding:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def begin(self, ids_1T: Any) -> Any:
            counts["prompts"] += 1
            now.seconds += seconds_of_token(0)
            return ids_1T

        def next(self, token_11: Any) -> Any:
            counts["tokens"] += 1
            now.seconds += seconds_of_token(counts["tokens"])
            return token_11

    def whole(*_: Any, **__: Any) -> None:
        counts["calls"] += 1
        now.seconds += 50 * seconds_of_token(0)

    monkeypatch.setattr(speed, "clock", lambda model: now.seconds)
    monkeypatch.setattr(decoding, "Decoder", Decoding)
    monkeypatch.setattr(decoding, "generate", whole)
    metrics = speed.speed_metrics(model, read_tokenizer(Path(model.name_or_path)))
    return {**metrics, **counts, "seconds": now.seconds}


def test_timing_ends_when_the_spread_is_known_or_the_time_is_over(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    even = timings(monkeypatch, model, lambda n: 0.01)
    assert (even["prompts"], even["tokens"], even["calls"]) == (4, 8 + 3 * 49, 4)
    assert even["decode_tok_s"] == even["decode_tok_s_lo"] == pytest.approx(100)
    uneven = timings(monkeypatch, model, lambda n: 0.01 * (1 + (n - 9) // 7 % 2))  # every other chunk is half as fast
    assert uneven["prompts"] > 6 and uneven["decode_tok_s_lo"] < 0.6 * uneven["decode_tok_s_hi"]
    slow = timings(monkeypatch, model, lambda n: 0.2)
    assert slow["calls"] == 1 and slow["seconds"] < 26 and slow["decode_tok_s"] == pytest.approx(5)
    # one prompt, seven tokens and one call, however slow they are
    slowest = timings(monkeypatch, model, lambda n: 5.0)
    assert (slowest["prompts"], slowest["tokens"], slowest["calls"]) == (2, 8 + 7, 1)
    assert "decode_tok_s_lo" not in slowest and "decode_tok_s_lo" in slow  # seven tokens have no spread
    assert slowest["decode_tok_s"] == slowest["generate_tok_s"] == pytest.approx(0.2)
