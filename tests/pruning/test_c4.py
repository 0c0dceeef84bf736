"""Samples of C4: drawn as the papers' code does, and the lines for all that fails."""

import gzip
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lottery.errors import InputError, MachineError
from lottery.models.architecture import read_tokenizer
from lottery.models.checkpoint import BUILTIN
from lottery.models.sources import open_base
from lottery.models.texts import BUILTIN_TEXT
from lottery.pruning.c4 import FILE, REPO
from lottery.pruning.calibration import draw_samples, resolve_calibration
from lottery.spec import Spec
from tests.support.hub_server import Fault, Hub, use
from tests.support.servers import free_port


def documents() -> list[str]:
    """Forty, of 1 to 700 words; among them one with line separators, and one of umlauts."""
    words, generator = BUILTIN_TEXT.read_text(encoding="utf-8").split(" "), random.Random(5)
    found = []
    for _ in range(38):
        first = generator.randrange(len(words) - 700)
        found.append(" ".join(words[first : first + generator.choice((1, 20, 60, 200, 700))]))
    return [*found, "one\u2028two\n\nthree " * 40, "Übermäßig " * 60]


@pytest.fixture
def c4(server: Hub, tmp_path: Path) -> Path:
    """The file of C4, on the hub of the test."""
    path = tmp_path / "c4" / FILE
    path.parent.mkdir(parents=True)
    lines = (json.dumps({"text": text, "url": "x"}, ensure_ascii=False) + "\n" for text in documents())
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    server.add(REPO, tmp_path / "c4", kind="datasets")
    return path


def draw(**given: Any) -> np.ndarray:
    base = open_base("builtin")
    calibration = resolve_calibration(Spec.parse(method="wanda", calibration="c4", **given), base, base.id)
    assert calibration is not None
    return draw_samples(calibration, base, "cpu")


def published(texts: list[str], tokenizer: Any, nsamples: int, seed: int, seqlen: int) -> list[list[int]]:
    """What the code of wanda and sparsegpt does."""
    before = random.getstate()
    random.seed(seed)
    samples = []
    for _ in range(nsamples):
        while True:
            i = random.randint(0, len(texts) - 1)
            ids = tokenizer(texts[i])["input_ids"]
            if len(ids) > seqlen:
                break
        i = random.randint(0, len(ids) - seqlen - 1)
        samples.append(ids[i : i + seqlen])
    random.setstate(before)
    return samples


@pytest.mark.parametrize(("nsamples", "seed", "seqlen"), [(40, 0, 32), (7, 1, 100), (12, 2, 512)])
def test_as_the_published_code_draws(nsamples: int, seed: int, seqlen: int, c4: Path) -> None:
    samples_NT = draw(nsamples=nsamples, seed=seed, seqlen=seqlen)
    assert samples_NT.dtype == np.int64 and samples_NT.shape == (nsamples, seqlen)
    assert samples_NT.tolist() == published(documents(), read_tokenizer(BUILTIN), nsamples, seed, seqlen)


def test_a_document_of_as_many_tokens_is_too_short(c4: Path) -> None:
    """The rule asks for more."""
    tokenizer = read_tokenizer(BUILTIN)
    assert tokenizer is not None
    length = len(tokenizer(documents()[-2])["input_ids"])
    assert draw(nsamples=60, seqlen=length).tolist() == published(documents(), tokenizer, 60, 0, length)


def test_it_is_downloaded_once_and_named_by_its_hash(
    c4: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, spec = open_base("builtin"), Spec.parse(method="wanda", calibration="c4")
    found = resolve_calibration(spec, base, base.id)
    assert found is not None and found.digest == hashlib.sha256(c4.read_bytes()).hexdigest()
    assert server.served[c4.name] == len(c4.read_bytes())
    for url, offline in ((server.url, False), (f"http://127.0.0.1:{free_port()}", False), (server.url, True)):
        use(monkeypatch, url, tmp_path / "home", offline=offline)
        server.asked.clear()
        assert resolve_calibration(spec, base, base.id) == found
        assert server.asked == []


def test_no_document_is_long_enough(c4: Path, tmp_path: Path) -> None:
    c4.write_bytes(gzip.compress(b'{"text": "short"}\n{"text": "shorter"}'))
    with pytest.raises(InputError) as caught:
        draw(seqlen=200)
    said = (
        "seqlen=200: none of the 2 documents of calibration=c4 has more tokens; give a smaller seqlen, calibration=self"
    )
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "content", [b"\x1f\x8b\x08\x00", b"not packed", gzip.compress(b'{"txt": 1}\n'), gzip.compress(b"[")]
)
def test_a_damaged_file(content: bytes, c4: Path) -> None:
    c4.write_bytes(content)
    with pytest.raises(MachineError) as caught:
        draw()
    line = str(caught.value)
    assert line.startswith("calibration=c4: ") and "is damaged" in line and "delete it" in line and "\n" not in line


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (Fault(403), InputError, "(403)"),
        (Fault(404, "RepoNotFound"), InputError, "no dataset allenai/c4"),
        (Fault(404, "EntryNotFound"), InputError, "has no file en/c4-train.00000-of-01024.json.gz"),
        (Fault(429), MachineError, "(429)"),
        (Fault(502), MachineError, "(502)"),
        (Fault(hang_s=60), MachineError, "in time"),
    ],
    ids=["403", "no repository", "no file", "429", "502", "hang"],
)
def test_the_hub_fails(
    fault: Fault,
    error: type[Exception],
    says: str,
    c4: Path,
    server: Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use(monkeypatch, server.url, tmp_path / "home", seconds=1)
    server.faults["/resolve/" if fault.code == "EntryNotFound" else "/api/datasets/"] = fault
    line_of(error, says)


def test_the_hub_fails_in_the_middle(c4: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.faults["/resolve/"] = Fault(500, method="GET")
    line_of(MachineError, "(500)")


def line_of(error: type[Exception], *says: str) -> None:
    with pytest.raises(error) as caught:
        draw()
    line = str(caught.value)
    assert line.startswith("calibration=c4: ") and "\n" not in line
    for word in (*says, "calibration=self", "calibration=FILE"):
        assert word in line, line


def test_without_a_network(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path / "home")
    line_of(MachineError, "cannot be reached")
    use(monkeypatch, server.url, tmp_path / "home", offline=True)
    line_of(InputError, "offline", "unset HF_HUB_OFFLINE", f"has no {REPO}/{FILE}")
    assert server.asked == []


def test_no_room_for_it(c4: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lottery.models.hub.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    line_of(MachineError, "GB to download", "HF_HOME")
    assert server.served[c4.name] == 0


def test_a_ticket_of_it_through_the_command(c4: Path, tmp_path: Path, lottery_json: Callable[..., Any]) -> None:
    how = ("--method", "wanda", "--nsamples", 4, "--seqlen", 64, "--measure", "none", "--register", "none")
    found = lottery_json("prune", "--calibration", "c4", *how, "--out", tmp_path / "c4-ticket")
    about = json.loads((tmp_path / "c4-ticket" / "ticket.json").read_text())
    assert about["spec"]["calibration"] == hashlib.sha256(c4.read_bytes()).hexdigest()
    assert found["ticket"] != lottery_json("prune", "--calibration", "self", *how)["ticket"]
