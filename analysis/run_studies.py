"""Runs the studies of docs/results.md on one model, and writes what each found into analysis/results.

    python analysis/run_studies.py MODEL --dataset wikitext2-test.parquet [--calibration wikitext103_train_excerpt.txt]

MODEL is builtin, or a folder that analysis/real_models.py made; a real model needs the calibration text too. A study whose
file is there already is not run, and one that was killed goes on: its tickets are in the tracking store that
MLFLOW_TRACKING_URI names, without it in mlflow.db beside this project's README. Studies of several models can run side by
side, each with OMP_NUM_THREADS=1. With --dry-run the commands are printed, and nothing is run.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "analysis" / "results"
SHORT = {"builtin": "builtin", "smollm2-135m-instruct": "smollm2", "gemma-3-270m": "gemma"}
QUANTIZE = "analysis/studies/quantize.yaml"
ALWAYS = ["--measure", "perplexity", "--register", "none", "--out", "none"]


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("model")
@click.option("--dataset", required=True, help="WikiText-2's test part, a .parquet file.")
@click.option("--calibration", help="The text that methods look at; the embedded model writes its own.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=RESULTS,
    help="The folder of the files.  [default: analysis/results]",
)
@click.option("--only", help="The study of this name alone, such as cliff-repair-smollm2.")
@click.option("--dry-run", is_flag=True, help="Print the commands, and run nothing.")
def main(model: str, dataset: str, calibration: str | None, out: Path, only: str | None, dry_run: bool) -> None:
    if model != "builtin" and Path(model).name not in list(SHORT)[1:]:
        raise click.UsageError(f"model={model}: give builtin, or a folder named {', '.join(list(SHORT)[1:])}")
    if model != "builtin" and calibration is None:
        raise click.UsageError(f"calibration: model={model} needs a text; give --calibration FILE.txt")
    if model == "builtin" and calibration is not None:
        raise click.UsageError(f"calibration={calibration}: the embedded model writes its own text; leave it out")
    out = Path(absolute(str(out)))
    planned = dict(studies(model, absolute(dataset), calibration and absolute(calibration)))
    if only is not None and only not in planned:
        raise click.UsageError(f"only={only}: known are {', '.join(planned)}")
    os.chdir(ROOT)  # a store whose path is relative is then the same for the study and for what collects it
    for stem, words in planned.items():
        file = out / f"{stem}.json"
        if only not in (None, stem):
            continue
        if file.exists() and not dry_run:
            click.echo(f"{stem}: {file} is there")
            continue
        click.echo(f"{stem}: {shlex.join(['lottery', 'study', *words])}")
        if not dry_run:
            run(words, file)


def absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def studies(model: str, dataset: str, calibration: str | None) -> Iterator[tuple[str, list[str]]]:
    """Yields (name of the file, words of the command after `lottery study`), the shortest studies first."""
    real = model != "builtin"
    models = ["--models", absolute(model) if real else model]
    text = ["--dataset", dataset, *(["--window", "1024", "--limit", "24"] if real else ["--limit", "48"])]
    looks = ["--calibration", str(calibration), "--seqlen", "1024"] if real else []
    for method in ("magnitude", "repair"):
        how = ["--method", "repair", *looks] if method == "repair" else ["--storage", "mask"]
        for name, more in (
            ("cliff", []),
            ("quantize", []),
            ("locate-budget", ["--budget", "0.1", "--control", "1"]),
            ("locate", ["--control", "1"]),
            ("map", ["--nsamples", "8"] if method == "repair" else []),
        ):
            kind, _, end = name.partition("-")
            study = QUANTIZE if kind == "quantize" else kind
            own = [] if kind == "quantize" and method == "magnitude" else how  # 8 bits cannot be masks over a base
            stem = "-".join(filter(None, (kind, method, end, SHORT[Path(model).name])))
            yield stem, [study, *models, *own, *more, *text, *ALWAYS]
    yield f"methods-{SHORT[Path(model).name]}", ["methods", *models, *looks, *text, *ALWAYS]


def run(words: list[str], out: Path) -> None:
    """Runs a study, and collects it. Ends the program where the study fails."""
    from lottery.study.design import read_study

    if code := subprocess.run([sys.executable, "-m", "lottery", "study", *words], check=False).returncode:
        sys.exit(code)
    pairs = dict(zip(words[1::2], words[2::2], strict=True))
    given = {key.removeprefix("--"): value for key, value in pairs.items() if key != "--out"}
    models, budget = given.pop("models"), given.pop("budget", None)
    study = read_study(words[0]).with_options(models, budget, given).id
    collect = [sys.executable, "analysis/collect.py", "--study", study, "--out", str(out)]
    if code := subprocess.run(collect, check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    main()
