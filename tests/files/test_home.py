"""A folder comes into being whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from lottery.files.home import new_folder


def test_processes_that_make_the_same_folder_take_turns(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from lottery.files.home import new_folder\n"
        "with new_folder(Path(sys.argv[1]), 'out') as partial:\n"
        "    if partial: (partial / 'x').write_text('1'); time.sleep(0.2)\n"
        "    print(partial is not None)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "t")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert sorted(p.communicate()[0].strip() for p in started) == ["False", "False", "False", "True"]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "t", "out") as partial:
        assert partial
        (partial / "x").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
