"""The figure and the table of speeds, where the same tickets were measured with several runtimes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lottery.kernels import product
from lottery.registry import store
from lottery.report import answers, efficiency, page, results, tables
from tests.support.reports import Elements
from tests.support.studies import write

# (sparsity, runtime) -> tokens per second of the ticket, of the dense model beside it, and what memory would allow
SPEEDS = {
    (0.5, "dense"): (20.0, 21.0, 40.0),
    (0.5, "packed"): (6.0, 20.0, 60.0),
    (0.5, "sparse"): (32.0, 20.0, 70.0),
    (0.8, "dense"): (21.0, 21.0, 40.0),
    (0.8, "packed"): (7.0, 20.0, 80.0),
    (0.8, "sparse"): (50.0, 20.0, 90.0),
}


@pytest.fixture(scope="module")
def study(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, lottery_json: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """A study of real tickets. Their speeds are replaced, so that they are known."""
    path = write(
        tmp_path_factory.mktemp("speeds"), "runtimes-apart", models=[str(tiny)], dataset="builtin", limit=2,
        register="none", measure="perplexity,memory", device="cpu",
        grid=[{"target": "mlp", "runtime": ["dense", "packed", "sparse"], "sparsity": [0.5, 0.8]}],
    )  # fmt: skip
    found = lottery_json("study", path, "--out", "none")
    client = store.connect()
    for row in found["tickets"]:
        if row["title"] == "dense":
            continue
        own, beside, limit = SPEEDS[float(row["params"]["sparsity"]), row["params"]["runtime"]]
        known = {"decode_tok_s": own, "decode_tok_s_lo": own - 1, "decode_tok_s_hi": own + 1}
        for name, value in (known | {"decode_floor_tok_s": limit}).items():
            client.log_metric(row["run_id"], name, value)
        dense = {"decode_tok_s": beside, "weights_bytes": 1e6}
        client.log_text(row["run_id"], json.dumps({"dense": dense}), "measurements.json")
    return found


def test_runtimes_of_one_machine_stand_beside_each_other(
    study: dict[str, Any], tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    lottery_json("report", "--study", study["run_id"], "--out", tmp_path / "report")
    shown = Elements((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert [name for name in shown.tables if name.startswith("speed-")] == ["speed-0"]
    head, *body = shown.tables["speed-0"]
    rows = [dict(zip(head, row, strict=True)) for row in body]
    titles = [f"mlp {s}%{r}" for s in (50, 80) for r in ("", " packed", " sparse")]
    assert [row["ticket"] for row in rows] == titles
    assert [row["of dense"] for row in rows] == ["0.95", "0.30", "1.60", "1.00", "0.35", "2.50"]
    fastest = product.pick_kernel()
    assert [row["kernel"] for row in rows] == ["", "", fastest] * 2
    assert rows[1]["in memory MB"] == rows[2]["in memory MB"] and rows[0]["in memory MB"] > rows[1]["in memory MB"]
    assert "These tickets decode at 1.60 to 2.50 times the speed of the dense model." in " ".join(shown.words)
    assert any(w.endswith("threads") and "kernel" not in w for w in shown.words)  # the machine's name
    with (tmp_path / "report" / "tables" / "speed-0.csv").open(encoding="utf-8") as f:
        kept = list(csv.DictReader(f))
    assert [row["hardware"].endswith(f", kernel {fastest}") for row in kept] == [False, False, True] * 2


def test_the_figure_shows_each_runtime_the_dense_model_and_the_floor(study: dict[str, Any]) -> None:
    (part,) = page.speeds_by_machine(results.load(store.connect(), study["run_id"])).values()
    decode, _ = efficiency.plot_speed(part).axes
    handles, labels = decode.get_legend_handles_labels()
    points = {}
    for handle, label in zip(handles, labels, strict=True):
        line: Any = handle.lines[0] if hasattr(handle, "lines") else handle
        points[label] = (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
    assert points == {
        "ticket, dense [quartiles]": ([20, 21], [0, 3]),
        "ticket, packed [quartiles]": ([6, 7], [1, 4]),
        "ticket, sparse [quartiles]": ([32, 50], [2, 5]),
        "dense model, beside": ([21, 20, 20, 21, 20, 20], [0, 1, 2, 3, 4, 5]),
        "memory's limit": ([40, 60, 70, 40, 80, 90], [0, 1, 2, 3, 4, 5]),
    }


def row(runtime: str | None, speed: float | None = None) -> dict[str, Any]:
    """A ticket beside a dense model of 10 tokens per second. Runs of earlier versions name no runtime."""
    named = {"runtime": runtime} if runtime else {}
    return {"base": "m", "title": "all 50%", "decode_tok_s": speed, "beside_tok_s": 10.0, **named}


def test_what_is_said_of_zeros_holds_for_the_runtimes_that_are_shown() -> None:
    saves = "save disk space, not time"
    assert saves in tables.speeds_note([row("dense", 9.0)]) and saves in tables.speeds_note([row(None, 9.0)])
    sparse = tables.speeds_note([row("sparse", 16.0)])
    assert saves not in sparse and "decode at 1.60 times the speed of the dense model" in sparse
    assert "times the speed" not in tables.speeds_note([row("sparse")])
    both = tables.speeds_note([row("dense", 9.0), row("sparse", 16.0)])
    assert saves in both and "1.60 times" in both
    assert tables.speeds_note([row("packed", 9.0)]) == ""


def test_int8_is_w8a16_where_codes_are_dequantized() -> None:
    schemes = [answers.quantization_scheme({"quantize": "int8", **({"runtime": r} if r else {})})
               for r in ("dense", None, "packed", "sparse")]  # fmt: skip
    assert schemes == ["int8 (w8a8)", "int8 (w8a8)", "int8 (w8a16)", "int8 (w8a16)"]
    assert answers.quantization_scheme({"quantize": "fp8", "runtime": "sparse"}) == "fp8"


def test_one_runtime_needs_no_name_in_the_legend() -> None:
    rows = pd.DataFrame([{
        "kind": "ticket", "base": "m", "title": "all 50% sparse", "runtime": "sparse", "device": "cpu", "hardware": "AMD EPYC, kernel avx2",
        "decode_tok_s": 3.0, "decode_tok_s_lo": 2.0, "decode_tok_s_hi": 4.0, "weights_bytes": 1e6,
    }])  # fmt: skip
    decode, _ = efficiency.plot_speed(rows).axes
    assert decode.get_title(loc="left").endswith("AMD EPYC")
    assert decode.get_legend_handles_labels()[1] == ["ticket [quartiles]"]
