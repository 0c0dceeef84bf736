"""What a person reads of a command, and how soon."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from click.testing import Result


def test_plan_and_doctor_for_people(tiny: Path, cli: Callable[..., Result]) -> None:
    said = cli("plan", "--model", tiny, "--target", "q_proj@1").stdout
    assert "| model.layers.*.self_attn.q_proj.weight | attention | 48 x 48 | BF16 | 1 " in " ".join(said.split())
    assert "tracking store" in cli("doctor").stdout


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from lottery.cli.main import main\n"
        "for name in ([], *([c] for c in main.commands)): assert CliRunner().invoke(main, [*name, '--help']).exit_code == 0\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'mlflow', 'transformers', 'numba', 'numpy', 'rich'}))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
