"""Makes the documents' figures from scratch: python analysis/figures.py [--out analysis/figures] [--model builtin]

It runs each study by its command. Tickets that exist already are not made again, so a second call only draws. Each
figure is one function of a data frame (lottery/report/figures.py, heatmaps.py). The files and the answers are printed
on stdout.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

STUDIES = {  # name of the figure -> arguments of `lottery study`
    "cliff": ("cliff",),
    "locate": ("locate", "--control", "3"),
    "budget": ("locate", "--control", "3", "--budget", "0.05"),
    "map": ("map",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--measure", default="perplexity", help="what to measure; all: also speed, memory, samples")
    parser.add_argument("--limit", default="none", help="measure the first N windows only, for a quick look")
    arguments = parser.parse_args()
    options = ("--models", arguments.model, "--measure", arguments.measure, "--limit", arguments.limit)
    runs = {name: run_study(*words, *options) for name, words in STUDIES.items()}

    from lottery.progress import quiet_libraries
    from lottery.registry import store
    from lottery.report import answers, cliff_answer, figures, frames, heatmaps, images, rankings, results

    quiet_libraries()
    client = store.connect(read_only=True)
    found = {name: results.load(client, run_id) for name, run_id in runs.items()}
    budget = found["budget"]
    places = answers.answer_ranking(rankings.rank_targets(frames.records(budget.rows), budget.nll))
    cliff = cliff_answer.answer_cliff(frames.records(found["cliff"].rows))
    drawn = {
        "cliff": figures.plot_cliff(found["cliff"].rows, crossings=cliff.data),
        "locate": heatmaps.plot_targets(found["locate"].rows),
        "budget": figures.plot_ranking(frame(places.data)),
        "map": heatmaps.plot_layers(found["map"].rows),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        (arguments.out / f"{name}.svg").write_text(images.to_svg(figure), encoding="utf-8")
        (arguments.out / f"{name}.png").write_bytes(images.to_png(figure))
        print(arguments.out / f"{name}.svg")
    for answer in (cliff, places):
        print(f"\n{answer.question} {answer.sentence}\n{answer.sure}")


def run_study(*words: str) -> str:
    """Runs `lottery study` and returns its run's id. Its progress goes to the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "lottery", "study", *words, "--out", "none", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"lottery study {' '.join(words)}: exit code {done.returncode}")
    return json.loads(done.stdout)["run_id"]


def frame(rows: Any) -> Any:
    import pandas as pd

    return pd.DataFrame(list(rows))


if __name__ == "__main__":
    main()
