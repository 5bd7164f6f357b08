"""The shipped Grafana dashboard as tests read it."""

import json
from pathlib import Path
from typing import Any

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana/dashboards/covervlm.json").read_text())


def queries() -> dict[str, str]:
    """Every query by its panel's title and the target's letter."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }


def runnable(query: str, interval: str) -> str:
    """A query as Grafana sends it for all instances."""
    return query.replace("$__rate_interval", interval).replace("$instance", ".*")
