"""What a browser shows of a tracking store: a saved view of its tickets, and addresses. One of the files that say mlflow.

The formats are those that MLflow's own pages write (seen in 3.17): a saved view is a tag of the experiment,
`mlflow.sharedViewState.KEY`, and KEY in an address opens it; MLflow's demo (mlflow/demo/generators/saved_views.py) seeds
views in the same way. Whether the table or the chart opens is no part of a view, and neither is the switch between
"GenAI" (what a browser begins with) and "Model training": both are in the address. (The tag `mlflow.experimentKind` is
not set: since there is the switch, no page reads it.)
"""

import contextlib
import json
import re
from typing import Any
from urllib.parse import urlencode

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

VIEW = "lottery"  # the key of the view, in the tag's name and in addresses
MARK = "lottery.views"  # a tag of an experiment that was prepared once: what a person deletes there stays deleted
EDITION = "1"  # its value; raise it, and a changed view replaces the old one in every experiment that gets another run
NOTE_TAG = "mlflow.note.content"
COLUMNS = {  # of the runs table, in this order, with their width: all in sight where the window is 1,600 pixels wide
    "metrics.`perplexity`": 95,
    "metrics.`perplexity_ratio`": 120,
    "metrics.`sparsity_model`": 120,
    "metrics.`disk_ratio`": 95,
    "tags.`winner`": 75,
    "attributes.`Dataset`": 190,
    "params.`model`": 90,
}
CHARTS = (  # (x, y); no axis of MLflow's is logarithmic: bits per byte are the logarithm of perplexity
    ("sparsity_model", "perplexity"),
    ("sparsity_model", "bits_per_byte"),
    ("disk_ratio", "perplexity_ratio"),
)


def prepare_experiment(client: MlflowClient, experiment_id: str) -> None:
    """Once an experiment: the saved view "Tickets by perplexity", and a description that links to it, where there is
    none. One request where that was done before.

    Many runs may do it at once: they write the same. What fails is left to the next run; no ticket is lost for a view.
    """
    with contextlib.suppress(MlflowException):
        tags = client.get_experiment(experiment_id).tags
        if tags.get(MARK) == EDITION:
            return
        client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{VIEW}", saved_view())
        if NOTE_TAG not in tags:
            client.set_experiment_tag(experiment_id, NOTE_TAG, experiment_description(experiment_id))
        client.set_experiment_tag(experiment_id, MARK, EDITION)


def experiment_description(experiment_id: str) -> str:
    """An experiment's description. MLflow's list of experiments shows its beginning, as it is written here."""
    table, chart = runs_url("", experiment_id), runs_url("", experiment_id, chart=True)
    return f"Pruned language models. All tickets: [table by perplexity]({table}), [charts against sparsity]({chart})."


def saved_view() -> str:
    """The tag's value: tickets only, best perplexity first, the columns that judge them; charts; every bar chart of one
    metric, which is what MLflow draws by itself, stays folded up."""
    whole = {"deleted": False, "isGenerated": False}
    sections = [
        {"uuid": VIEW, "name": "Tickets", "display": True, "isReordered": False, **whole},
        {"uuid": f"{VIEW}-rest", "name": "Model metrics", "display": False, "isReordered": False, **whole},
    ]
    charts = [
        {
            "uuid": f"{VIEW}-{x}-{y}",
            "type": "SCATTER",
            "metricSectionId": VIEW,
            "runsCountToCompare": 100,
            "xaxis": {"key": x, "type": "METRIC"},
            "yaxis": {"key": y, "type": "METRIC"},
            **whole,
        }
        for x, y in CHARTS
    ]
    state: dict[str, Any] = {
        "searchFilter": "tags.kind = 'ticket'",
        "orderByKey": "metrics.`perplexity`",
        "orderByAsc": True,
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "runsHiddenMode": "SHOW_ALL",  # not the first ten alone
        "compareRunSections": sections,
        "compareRunCharts": charts,
    }
    # a fixed time: of two runs that begin at once both write the same
    return json.dumps({"name": "Tickets by perplexity", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def runs_url(server: str, experiment_id: str, chart: bool = False) -> str:
    """The page of an experiment's tickets, as the saved view has them; on a server whose address is `server`."""
    query = {"workflowType": "machine_learning", "viewStateShareKey": VIEW} | (
        {"compareRunsMode": "CHART"} if chart else {}
    )
    return f"{browser_url(server)}#/experiments/{experiment_id}/runs?{urlencode(query)}"


def browser_url(server: str) -> str:
    """A server's address for a browser: no password in it; "" stays "", for links from page to page."""
    return re.sub(r"//[^/@]*@", "//", server).rstrip("/") + "/" if server else ""


def link_version(client: MlflowClient, model_id: str, name: str, version: str | int) -> None:
    """The logged model's page names the version that it is registered as, and not "Not registered".

    A server writes this itself when a version is created; a store without a server, which is a browser's later, does not.
    """
    key = "mlflow.modelVersions"
    with contextlib.suppress(MlflowException):
        have = json.loads(client.get_logged_model(model_id).tags.get(key, "[]"))
        if (name, str(version)) not in [(v["name"], str(v["version"])) for v in have]:  # the stores write 1 or "1"
            new = {"name": name, "version": str(version)}
            client.set_logged_model_tags(model_id, {key: json.dumps([*have, new])})
