"""What a person reads of a command."""

from collections.abc import Callable
from pathlib import Path

from click.testing import Result


def test_plan_and_doctor_for_people(tiny: Path, cli: Callable[..., Result]) -> None:
    said = cli("plan", "--model", tiny, "--target", "q_proj@1").stdout
    assert "| model.layers.*.self_attn.q_proj.weight | attention | 48 x 48 | BF16 | 1 " in " ".join(said.split())
    assert "tracking store" in cli("doctor").stdout
