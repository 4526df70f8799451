"""The experiment's page in MLflow's UI: a description, and a table and charts of policies to open from it."""

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from tasks.artifacts.mlflow_client import MlflowClient

POLICY = "dpr.policy"
"""The tag of a row that stands for a policy, which tells it from a stage."""
METRICS = ("win_rate", "accuracy", "kl", "tokens")

VIEW = "policies"
"""The UI has a view's columns from a tag of the experiment, whose name ends so, and all else from the address."""
AS_TRAINING = "workflowType=machine_learning"
"""Without it the UI opens every experiment as one of agents and traces."""

NOTE = """One row a policy: [as a table](#/experiments/{id}/runs?viewStateShareKey={view}&{training}), \
[as charts](#/experiments/{id}/runs?{query}&compareRunsMode=CHART&{training}).

`win_rate` (against SFT, which wins 0.5 against itself) and `accuracy` are shares, `kl` is to SFT in nats an answer, \
`tokens` the mean length of an answer.
"""


def prepare(client: "MlflowClient", experiment: str) -> None:
    """Set up the page where that was not done yet. What somebody changed in the UI stays."""
    rows = {"searchFilter": f"tags.`{POLICY}` LIKE '%'", "orderByKey": f"metrics.`{METRICS[0]}`"}
    query = urlencode({**rows, "orderByAsc": "false"})
    columns = [f"metrics.`{name}`" for name in METRICS]
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": NOTE.format(id=experiment, view=VIEW, training=AS_TRAINING, query=query),
        f"mlflow.sharedViewState.{VIEW}": json.dumps({**rows, "orderByAsc": False, "selectedColumns": columns}),
    }

    def set_missing(mlflow: Any) -> None:
        for name in tags.keys() - mlflow.get_experiment(experiment).tags.keys():
            mlflow.set_experiment_tag(experiment, name, tags[name])

    client.for_people("links to tables of policies", set_missing)
