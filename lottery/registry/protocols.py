"""This file describes the protocol of a run from the data set that MLflow keeps with it."""

import json
from typing import Any

from lottery.measuring.protocol import count_windows


def describe_protocol(run: Any) -> str:
    """Returns the protocol of an MLflow run in a line for people, "" if the run keeps none."""
    for given in run.inputs.dataset_inputs if run.inputs else ():
        try:
            found, source = json.loads(given.dataset.profile), json.loads(given.dataset.source)
            windows = count_windows(found["windows"], found["tokens"] // found["window"])
            runtime = f", runtime {found['runtime']}" if found["runtime"] != "dense" else ""
            return (
                f"{source['tags']['dataset']}: {found['tokens']:,} tokens, {windows} of {found['window']}, "
                f"BOS {found['bos']}, {found['dtype']} on {found['device']}{runtime}"
            )
        except (ValueError, KeyError, TypeError):  # a data set that something else has logged
            continue
    return ""
