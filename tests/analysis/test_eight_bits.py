"""The tables of docs/quantizing.md, printed by analysis/eight_bits.py, in small."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lottery.measuring import speed
from tests.support.paths import ROOT


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"analysis_{name}", ROOT / "analysis" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_eight_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("eight_bits")
    monkeypatch.setattr(module, "SPARSITIES", (0.5,))
    monkeypatch.setattr(speed, "BUDGET_S", 0.0)  # no speed is looked at
    monkeypatch.setattr(speed, "DECODE_S", 0.0)
    arguments = ["--limit", "7", "--control", "1", "--folder", str(tmp_path)]
    done = CliRunner().invoke(module.main, arguments, catch_exceptions=False)
    tables = [[line.strip("| ").split(" | ") for line in part.splitlines()] for part in done.stdout.split("\n\n")]
    dense, packed = tables[0][2:], tables[2][2:]
    assert [cells[0] for cells in dense] == [cells[0] for cells in packed] == ["none 50%", "int8 50%", "fp8 50%"]
    assert all(len(cells) == len(tables[0][0]) for cells in dense)
    for one, other in zip(dense, packed, strict=True):
        assert float(other[2]) < float(one[6])  # packed weights take less memory
        if one[0] != "int8 50%":  # w8a8 is another arithmetic than w8a16
            assert one[1].split(" ")[0] == other[1]
