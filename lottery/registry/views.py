"""This file saves a view of the tickets for MLflow's pages and makes the addresses that open it in a browser.

The formats are those that MLflow's own pages write (seen in 3.17). A saved view is a tag of the experiment,
`mlflow.sharedViewState.KEY`, and an address with KEY opens it. MLflow's demo (mlflow/demo/generators/saved_views.py)
creates views in the same way. A view does not say whether the table or the chart opens, nor whether the page shows
"GenAI" (its default) or "Model training": both are in the address. The tag `mlflow.experimentKind` is not set, because
no page reads it since MLflow has the switch between these two.
"""

import contextlib
import json
import re
from typing import Any
from urllib.parse import urlencode

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

VIEW = "lottery"  # the key of the view, in the tag's name and in addresses
MARK = "lottery.views"  # this tag marks a prepared experiment, so that a view that a person deleted stays deleted
EDITION = "2"  # the tag's value; if it is raised, each experiment gets the changed view with its next run
FIRST_TABLE = "table by perplexity"  # what the descriptions of edition 1 call the table
NOTE_TAG = "mlflow.note.content"
COLUMNS = {  # the columns of the runs table -> their widths in pixels; a window of 1,400 pixels shows all of them
    "metrics.`perplexity_ratio`": 118,
    "tags.`winner`": 96,
    "metrics.`sparsity_model`": 116,
    "tags.`base`": 90,
    "attributes.`Dataset`": 176,
    "metrics.`perplexity`": 88,
}
PINNED = {"attributes.`Run Name`": 246, "runDateAndNestInfo": 140}  # the columns that every table has, "Created" is one
# The charts, as (x, y). MLflow's charts of points have no logarithmic axis, and one ticket with a perplexity of millions
# would press all others onto the axis. Bits per byte are a logarithm of the perplexity; they also compare across bases.
CHARTS = (("sparsity_model", "bits_per_byte"), ("disk_ratio", "bits_per_byte"))
CHART_HEIGHT = 480  # pixels


def prepare_experiment(client: MlflowClient, experiment_id: str) -> None:
    """Saves the view "Tickets by ratio" in an experiment, and a description that links to it if it has none. The
    description of an earlier edition is replaced too, and one that a person wrote is not.

    This happens once for each experiment; after that it costs one request. Many runs may do it at once, since they
    write the same. If it fails, the next run tries again, and this run goes on: a ticket matters more than a view.
    """
    with contextlib.suppress(MlflowException):
        tags = client.get_experiment(experiment_id).tags
        if tags.get(NOTE_TAG) == experiment_description(experiment_id, FIRST_TABLE):
            client.set_experiment_tag(experiment_id, NOTE_TAG, experiment_description(experiment_id))
        if tags.get(MARK) == EDITION:
            return
        client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{VIEW}", saved_view())
        if NOTE_TAG not in tags:
            client.set_experiment_tag(experiment_id, NOTE_TAG, experiment_description(experiment_id))
        client.set_experiment_tag(experiment_id, MARK, EDITION)


def experiment_description(experiment_id: str, name: str = "table by ratio to dense") -> str:
    """Returns an experiment's description, in which the table has this name. MLflow's list of experiments shows its
    beginning without rendering it."""
    table, chart = runs_url("", experiment_id), runs_url("", experiment_id, chart=True)
    return f"Pruned language models. All tickets: [{name}]({table}), [charts against sparsity]({chart})."


def saved_view() -> str:
    """Returns the view as the tag's value: only tickets, the lowest ratio to dense first, since perplexities of two bases or
    protocols do not compare.

    It has the charts of CHARTS. The section of bar charts, which MLflow itself draws for every metric, is folded.
    """
    common = {"deleted": False, "isGenerated": False}
    sections = [
        {"uuid": VIEW, "name": "Tickets", "display": True, "isReordered": False, **common}
        | {"columns": len(CHARTS), "cardHeight": CHART_HEIGHT},
        {"uuid": f"{VIEW}-rest", "name": "Model metrics", "display": False, "isReordered": False, **common},
    ]
    charts = [
        {
            "uuid": f"{VIEW}-{x}-{y}",
            "type": "SCATTER",
            "metricSectionId": VIEW,
            "runsCountToCompare": 100,
            "xaxis": {"key": x, "type": "METRIC"},
            "yaxis": {"key": y, "type": "METRIC"},
            **common,
        }
        for x, y in CHARTS
    ]
    state: dict[str, Any] = {
        "searchFilter": "tags.kind = 'ticket'",
        "orderByKey": "metrics.`perplexity_ratio`",
        "orderByAsc": True,
        "selectedColumns": list(COLUMNS),
        "columnOrder": [*PINNED, *COLUMNS],
        "columnWidths": PINNED | COLUMNS,
        "runsHiddenMode": "SHOW_ALL",  # by default the charts show only the first ten runs
        "compareRunSections": sections,
        "compareRunCharts": charts,
    }
    # The time is fixed, so that two runs that begin at once write the same.
    return json.dumps({"name": "Tickets by ratio", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def runs_url(server: str, experiment_id: str, chart: bool = False) -> str:
    """Returns the address of an experiment's runs in the saved view, on the server with the address `server`."""
    query = {"workflowType": "machine_learning", "viewStateShareKey": VIEW} | (
        {"compareRunsMode": "CHART"} if chart else {}
    )
    return f"{browser_url(server)}#/experiments/{experiment_id}/runs?{urlencode(query)}"


def browser_url(server: str) -> str:
    """Returns a server's address without a password; "" stays "", for links between MLflow's own pages."""
    return re.sub(r"//[^/@]*@", "//", server).rstrip("/") + "/" if server else ""


def link_version(client: MlflowClient, model_id: str, name: str, version: str | int) -> None:
    """Makes the logged model's page name the version that it is registered as, instead of "Not registered".

    A server writes this tag when it creates a version. A store without a server does not, and a server may show that
    store later.
    """
    key = "mlflow.modelVersions"
    with contextlib.suppress(MlflowException):
        have = json.loads(client.get_logged_model(model_id).tags.get(key, "[]"))
        if (name, str(version)) not in [
            (v["name"], str(v["version"])) for v in have
        ]:  # some stores write 1, others "1"
            new = {"name": name, "version": str(version)}
            client.set_logged_model_tags(model_id, {key: json.dumps([*have, new])})
