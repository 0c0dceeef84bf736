"""On a text that holds nothing to learn no ticket is better than its control."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.hypotheses import record_of, write


@pytest.mark.slow
def test_on_random_characters_no_arm_beats_its_control(
    lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    draw = random.Random(0)
    text = tmp_path / "random.txt"
    text.write_text("\n".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=60)) for _ in range(6_000)))
    arms = ["rewound", "permuted", "reinit", "shuffled"]
    grid = [{"arm": "dense"}, {"arm": arms, "density": [0.64, 0.33], "lr": [0.003, 0.01]}]
    preset = write(tmp_path, "random", steps=40, grid=grid)
    printed = lottery_json("hypothesis", "--preset", preset, "--text", text, "--jobs", 1, "--out", "none")
    beats = [claim for claim in printed["claims"] if claim["claim"] == "beats"]
    assert sorted((c["control"], round(c["density"], 2)) for c in beats) == [
        (arm, density) for arm in sorted(arms[1:]) for density in (0.33, 0.64)
    ]  # fmt: skip
    assert not [claim for claim in beats if claim["holds"]]
    whys = {c["why"] for c in record_of(printed["run_id"])["claims"]}
    assert all("no more than how frequent tokens are" in why for why in whys)
    # By losses alone it would seem so: where nobody has trained enough, the ticket is ahead by its mask's training.
    slow = {r["arm"]: r["loss"] for r in record_of(printed["run_id"])["rows"] if r["lr"] == 0.003 and r["round"] == 2}
    assert slow["rewound"] + 0.01 < min(slow[arm] for arm in arms[1:])
