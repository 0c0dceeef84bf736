"""The text that a method looks at: what names it, and the samples of a file or of WikiText-2."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lottery.errors import InputError, MachineError
from lottery.jobs.plan import look
from lottery.models.architecture import encode, read_tokenizer
from lottery.models.checkpoint import BUILTIN, Base
from lottery.models.sources import open_base
from lottery.models.texts import BUILTIN_TEXT
from lottery.pruning.calibration import Calibration, draw_samples, resolve_calibration
from lottery.spec import Spec, ticket_id
from tests.support.hub_server import Hub, use
from tests.support.models import tiny_model
from tests.support.servers import free_port


@pytest.fixture(scope="module")
def builtin() -> Base:
    return open_base("builtin")


def resolve(base: Base, **given: Any) -> Calibration:
    found = resolve_calibration(Spec.parse(**({"method": "wanda", "calibration": BUILTIN_TEXT} | given)), base, base.id)
    assert found is not None
    return found


def draw(base: Base, **given: Any) -> np.ndarray:
    return draw_samples(resolve(base, **given), base, "cpu")


def tokens_of(text: str) -> list[int]:
    return encode(read_tokenizer(BUILTIN), text)


def refused(error: type[Exception], base: Base, *says: str, **given: Any) -> None:
    with pytest.raises(error) as caught:
        draw(base, **given)
    line = str(caught.value)
    assert "\n" not in line
    for word in says:
        assert word in line, line


def test_what_auto_means(builtin: Base, tiny: Path, server: Hub) -> None:
    spec = Spec.parse(method="wanda")
    assert resolve_calibration(spec, builtin, "builtin") == Calibration("self", "self", 32, 512, 0, "dense")
    assert resolve(builtin, method="sparsegpt").propagate == "pruned"
    assert resolve(builtin, method="refit", propagate="pruned").propagate == "pruned"
    assert resolve(open_base(str(tiny))).seqlen == 128
    # of any other model it is c4, also where that cannot be had
    refused(InputError, open_base(str(tiny)), "calibration=c4", "allenai/c4", calibration="auto")
    assert resolve_calibration(Spec.parse(calibration="auto"), builtin, "builtin") is None


def test_auto_is_at_most_2048_tokens(tmp_path: Path) -> None:
    base = open_base(str(tiny_model(tmp_path / "m", max_position_embeddings=8192)))
    assert resolve(base).seqlen == 2048
    assert resolve(base, seqlen=4096).seqlen == 4096


def test_what_names_a_ticket(builtin: Base, tmp_path: Path) -> None:
    """The text's content does, not its place; what draws from it does."""
    copy = shutil.copy(BUILTIN_TEXT, tmp_path / "copy.txt")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": BUILTIN_TEXT.read_text(encoding="utf-8")}))
    found = resolve(builtin, nsamples=4, seqlen=64, seed=3)
    digest = hashlib.sha256(BUILTIN_TEXT.read_bytes()).hexdigest()
    assert found.identity == {
        "calibration": digest, "nsamples": 4, "seqlen": 64, "seed": 3, "propagate": "dense",
    }  # fmt: skip
    for same in (copy, tmp_path / "rows.jsonl"):
        assert resolve(builtin, nsamples=4, seqlen=64, seed=3, calibration=same).identity == found.identity

    def id(**given: Any) -> str:
        spec = Spec.parse(method="wanda", **given)
        return ticket_id(spec, {"config.json": "a" * 64}, ["x.weight"], None, resolve(builtin, **given).identity)

    few = {"nsamples": 4, "seqlen": 64}
    own = {id(**few | change) for change in ({}, {"seed": 1}, {"nsamples": 5}, {"seqlen": 65}, {"propagate": "pruned"})}
    assert len(own) == 5
    # neither device nor dtype, and an auto by its value
    assert {id(**few, device="cpu", dtype="float32"), id(**few, propagate="dense")} < own


def test_a_file_is_one_stream_of_tokens(builtin: Base, capsys: pytest.CaptureFixture[str]) -> None:
    samples_NT = draw(builtin, nsamples=5, seqlen=100, seed=7)
    assert samples_NT.shape == (5, 100) and samples_NT.dtype == np.int64
    stream = tokens_of(BUILTIN_TEXT.read_text(encoding="utf-8"))
    generator = np.random.default_rng(7)
    starts = generator.integers(0, len(stream) - 99, 5)
    assert samples_NT.tolist() == [stream[start : start + 100] for start in starts]
    assert starts.tolist() == [26363, 17440, 19089, 25033, 16134]  # a change would give other bytes to old names
    assert capsys.readouterr().err == ""
    assert draw(builtin, nsamples=5, seqlen=100, seed=8).tolist() != samples_NT.tolist()


def test_every_start_is_possible(builtin: Base, tmp_path: Path) -> None:
    ids = tokens_of("one two three four five six")
    (tmp_path / "t.txt").write_text("one two three four five six")
    drawn = draw(builtin, calibration=tmp_path / "t.txt", nsamples=200, seqlen=len(ids) - 2)
    assert {tuple(sample) for sample in drawn.tolist()} == {tuple(ids[i : len(ids) - 2 + i]) for i in (0, 1, 2)}


def test_a_text_that_is_short(builtin: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "short.txt"
    text.write_text("The quick brown fox. " * 10)
    tokens = len(tokens_of(text.read_text()))
    says = (f"calibration={text}", f"its {tokens} tokens", "one sample of 512", "seqlen", "calibration=self")
    refused(InputError, builtin, *says, calibration=text)
    capsys.readouterr()
    assert (
        draw(builtin, calibration=text, seqlen=tokens, nsamples=2).tolist()[0]
        == draw(builtin, calibration=text, seqlen=tokens, nsamples=1).tolist()[0]
    )
    warning = capsys.readouterr().err
    assert warning.startswith("warning: calibration=") and "samples overlap" in warning and warning.count("\n") == 1
    assert f"{tokens} tokens and 2 samples of {tokens} take {2 * tokens}" in warning


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.txt", None, ("there is no such file", "self, c4, wikitext2-train, builtin or a file")),
        ("latin.txt", b"caf\xe9 " * 1000, ("UTF-8",)),
        ("rows.jsonl", b'{"txt": "x"}\n', ("no column 'text'",)),
        ("x.parquet", b"PAR1", ("not readable",)),
        ("x.pdf", b"PDF", ("the ending .pdf", ".jsonl")),
    ],
)
def test_a_file_that_is_no_text(
    name: str, content: bytes | None, says: tuple[str, ...], builtin: Base, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(InputError, builtin, f"calibration={tmp_path / name}: ", *says, calibration=tmp_path / name)


def test_the_test_split_is_no_text_to_look_at(builtin: Base) -> None:
    """It can be given as a file, whose name says what it is."""
    refused(
        InputError, builtin, "calibration=wikitext2: there is no such file", "wikitext2-train", calibration="wikitext2"
    )


def test_a_sample_beyond_the_model_s_context(builtin: Base) -> None:
    refused(InputError, builtin, "seqlen=513", "at most 512", "give a smaller seqlen", seqlen=513)


def test_parameters_that_mean_nothing_to_a_method(builtin: Base, capsys: pytest.CaptureFixture[str]) -> None:
    spec = Spec.parse(calibration="no/such.txt", nsamples=5, seqlen=4096, propagate="pruned")
    assert resolve_calibration(spec, builtin, "builtin") is None
    warning = capsys.readouterr().err
    assert warning == (
        "warning: calibration=no/such.txt, nsamples=5, seqlen=4096, propagate=pruned: ignored, because method=magnitude "
        "looks at no data\n"
    )
    assert resolve_calibration(Spec.parse(method="random", seed=5), builtin, "builtin") is None
    assert capsys.readouterr().err == ""


def test_a_model_without_its_tokenizer(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", vocab_size=100)
    refused(InputError, open_base(str(folder)), "its tokenizer gives token", "only 100 tokens", seqlen=64)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused(InputError, open_base(str(folder)), f"calibration={BUILTIN_TEXT}", "no tokenizer", "self", seqlen=64)


def wikitext_on(server: Hub, folder: Path, rows: list[str]) -> None:
    (folder / "raw").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / "raw" / "train-00000-of-00001.parquet")
    splits = "  data_files:\n  - split: train\n    path: raw/train-*\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n{splits}---\n")
    server.add("Salesforce/wikitext", folder, kind="datasets")


def test_the_embedded_text_is_the_one_that_the_file_holds(builtin: Base, tiny: Path) -> None:
    """Its ticket is that of the file; a plan reads it, since it needs no hub."""
    spec, files = Spec.parse(method="wanda", sparsity=0.5), {"model.safetensors": "0"}
    ids = {
        ticket_id(spec, files, ["a"], None, resolve(base, calibration=text, seqlen=32).identity)
        for base in (builtin, open_base(str(tiny)))
        for text in ("builtin", str(BUILTIN_TEXT))
    }
    assert len(ids) == 1
    assert (draw(builtin, calibration="builtin", seqlen=32) == draw(builtin, seqlen=32)).all()
    assert look(Spec.parse(method="wanda", calibration="builtin"), builtin)[1] == ""


def test_wikitext_s_training_split_is_joined_by_spaces(
    builtin: Base, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["", " = Title = \n", *(f"{line} \n" for line in BUILTIN_TEXT.read_text(encoding="utf-8").split("\n"))]
    wikitext_on(server, tmp_path / "wikitext", rows)
    joined = " ".join(rows)
    found = resolve(builtin, calibration="wikitext2-train", nsamples=2, seqlen=32)
    assert found.digest == hashlib.sha256(joined.encode()).hexdigest()
    stream = tokens_of(joined)
    starts = np.random.default_rng(0).integers(0, len(stream) - 31, 2)
    assert draw_samples(found, builtin, "cpu").tolist() == [stream[s : s + 32] for s in starts]

    says = (
        "calibration=wikitext2-train: ",
        "cannot be reached",
        "calibration=self",
        "train parquet file as calibration=FILE",
    )
    use(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path / "empty")
    refused(MachineError, builtin, *says, calibration="wikitext2-train")
