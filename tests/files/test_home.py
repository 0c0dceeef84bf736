"""A folder comes into being whole or not at all; what the names of folders and files may be."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lottery.files.atomic import atomic_folder
from lottery.files.home import home
from lottery.registry.store import store_digest
from lottery.ticket.record import write_record
from tests.support.models import tiny_model
from tests.support.refused import refused


def test_processes_that_make_the_same_folder_take_turns(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from lottery.files.atomic import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]), 'out') as partial:\n"
        "    if partial: (partial / 'x').write_text('1'); time.sleep(0.2)\n"
        "    print(partial is not None)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "t")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert sorted(p.communicate()[0].strip() for p in started) == ["False", "False", "False", "True"]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "t", "out") as partial:
        assert partial
        (partial / "x").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_not_utf8_is_refused_before_any_work(
    tiny: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """No tracking store takes it as a parameter, and no output as text."""
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    bad.write_text("a text")
    quick = ("--measure", "none", "--register", "none")
    for name, command in (
        ("dataset", ("prune", "--measure", "perplexity", "--dataset", bad)),
        ("model", ("prune", *quick, "--model", bad)),
        ("out", ("prune", *quick, "--model", tiny, "--out", bad.with_suffix(""))),
        ("ticket", ("verify", bad)),
    ):
        refused(cli(*command, code=2), f"{name}={tmp_path}/caf", "not UTF-8", "rename")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bell\x07here", "bell here"), ("no\xa0break", "no break"), ("zero\u200bwidth", "zero width"), ("two\nlines", "two lines"),
    ],
)  # fmt: skip
def test_a_model_folder_s_name_with_characters_that_cannot_be_printed(
    name: str, words: str, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    model = tiny_model(tmp_path / name, vocab_size=4100 + len(name))  # a ticket of its own
    how = ("--dataset", "builtin", "--window", 64, "--limit", 2, "--measure", "perplexity")
    made = lottery_json("prune", "--model", model, *how)
    assert made["tags"]["base"] == words
    assert made["model_uri"].startswith(f"models:/ticket-{words.replace(' ', '-')}/")
    lottery_json("verify", made["model_uri"])
    # The same weights under another name are the same ticket.
    model.rename(tmp_path / "plain")
    again = lottery_json("prune", "--model", tmp_path / "plain", *how, "--register", "none")
    assert again["ticket"] == made["ticket"]


def test_what_an_older_version_left_does_not_block_the_same_weights(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]
) -> None:
    """It wrote tickets whose base had a name that it could not read back, and stopped before they were registered."""
    model = tiny_model(tmp_path / "left", vocab_size=4200)
    how = ("prune", "--model", model, "--measure", "none")
    kept = Path(lottery_json(*how, "--register", "none")["path"])
    record = json.loads((kept / "ticket.json").read_text())
    del record["checksum"]
    record["base"]["id"] = "le\x07ft"
    write_record(kept, record)
    refused(cli("verify", kept, code=2), "base.id")
    (kept / "measurements.json").unlink()
    unfinished = home() / "unfinished" / f"{kept.name}-{store_digest()[:8]}"
    shutil.copytree(kept, unfinished)
    result = cli(*how, "--json")
    assert f"{unfinished}: what an earlier run left there is no whole ticket and is made again" in result.stderr
    lottery_json("verify", json.loads(result.stdout)["model_uri"])
    # What is kept for the user is only deleted by the user.
    refused(cli(*how, "--register", "none", code=2), "base.id", f"or delete {kept}")
