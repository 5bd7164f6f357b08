"""Compose file, dashboard and Kubernetes manifests: well formed, and of one mind with the server."""

import itertools
import json
import re
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.settings import MIB, Settings
from tests.docker.dashboard import DASHBOARD, DOCKER, queries
from tests.server.api.scripted import ScriptedEngine

KUBERNETES = "1.33"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
MANIFESTS = [
    pytest.param(document, id=f"{path.stem}-{document['kind']}")
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]


def manifest(kind: str) -> dict:
    (found,) = [parameter.values[0] for parameter in MANIFESTS if parameter.values[0]["kind"] == kind]
    return found


@pytest.mark.parametrize("document", MANIFESTS)
def test_every_manifest_fits_kubernetes_schema_strictly(document):
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_misspelt_manifest_does_not_fit():
    broken = json.loads(json.dumps(manifest("Deployment")).replace("readinessProbe", "readynessProbe"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_service_autoscaler_and_deployment_name_each_other():
    deployment, service, scaler = manifest("Deployment"), manifest("Service"), manifest("HorizontalPodAutoscaler")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    config, secret = manifest("ConfigMap"), manifest("Secret")
    sources = [source[key]["name"] for source in container["envFrom"] for key in source]
    assert sources == [config["metadata"]["name"], secret["metadata"]["name"]]


def test_the_pods_settings_are_settings_and_leave_time_to_drain(monkeypatch):
    given = manifest("ConfigMap")["data"] | manifest("Secret")["stringData"]
    for name, value in given.items():
        assert name.removeprefix("COVERVLM_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    settings = Settings()
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > settings.drain_seconds + settings.shutdown_timeout
    assert settings.drain_seconds > 0


def test_compose_builds_this_repository_and_mounts_what_exists():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    build = COMPOSE["services"]["covervlm"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    assert all(
        re.search(r":v?\d", service["image"]) for name, service in COMPOSE["services"].items() if name != "covervlm"
    )


def test_compose_sets_only_settings_and_stops_late_enough(monkeypatch):
    service = COMPOSE["services"]["covervlm"]
    assert all(name.removeprefix("COVERVLM_").lower() in Settings.model_fields for name in service["environment"])
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().drain_seconds + Settings().shutdown_timeout


def rendered(value: str, **environment: str) -> str:
    """A value of the compose file as Compose reads it."""
    filled = re.sub(r"(?<!\$)\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], value)
    return filled.replace("$$", "$")


def metrics_status(settings: Settings, token: str) -> int:
    client = TestClient(create_app(settings, ScriptedEngine()))
    return client.get("/metrics", headers={"Authorization": f"Bearer {token}"}).status_code


@pytest.mark.parametrize("environment", [{}, {"COVERVLM_METRICS_TOKEN": "it's $HOME"}], ids=["default", "own"])
@pytest.mark.parametrize("key", ["", "sesame"], ids=["no keys", "keys"])
def test_composes_prometheus_sends_the_token_that_composes_server_takes(tmp_path, monkeypatch, key, environment):
    given = {**environment, "COVERVLM_API_KEY": key}
    service, prometheus = COMPOSE["services"]["covervlm"], COMPOSE["services"]["prometheus"]
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, rendered(value, **given))
    [job] = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    place = job["authorization"]["credentials_file"]
    (tmp_path / "prometheus").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "prometheus").chmod(0o755)
    *shell, script = (rendered(word) for word in prometheus["entrypoint"])
    done = subprocess.run(
        [*shell, script.replace(place, f"{tmp_path}/token")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
        | {name: rendered(value, **given) for name, value in prometheus["environment"].items()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("--config.file=/etc/prometheus/prometheus.yml ")
    token = (tmp_path / "token").read_text()
    assert token == given.get("COVERVLM_METRICS_TOKEN", "covervlm-metrics")
    assert metrics_status(Settings(clip_model="none"), token) == 200
    assert metrics_status(Settings(clip_model="none"), "guessed") == 401


def test_the_pod_monitor_finds_the_pods_their_port_and_the_token():
    monitor = yaml.safe_load((DOCKER / "kubernetes/monitoring/podmonitor.yaml").read_text())
    pods = manifest("Deployment")["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    [container] = pods["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    credentials, secret = endpoint["authorization"]["credentials"], manifest("Secret")
    assert credentials["name"] == secret["metadata"]["name"]
    assert credentials["key"] in secret["stringData"]


def test_a_pods_memory_holds_what_its_settings_allow(monkeypatch):
    for name, value in manifest("ConfigMap")["data"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    [container] = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    caches = settings.feature_cache_bytes + settings.prefix_cache_bytes
    room = int(limit.removesuffix("Gi")) * 1024 * MIB - settings.max_inflight_bytes - caches
    assert room >= 2048 * MIB


def test_the_services_name_sets_no_option_of_a_pod():
    """Kubernetes gives pods COVERVLM_PORT=tcp://10.0.0.1:80 for a service called covervlm."""
    assert manifest("Deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_base_image_is_pinned_to_a_version():
    for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
        bases = re.findall(r"^ARG \w+=(\S+/?\S*:\S+)", (DOCKER / name).read_text(), re.MULTILINE)
        assert bases
        assert all(re.fullmatch(r"(python:3\.11\.\d+-slim-bookworm|vllm/vllm-openai:v\d+\.\d+\.\d+)", b) for b in bases)


def test_every_folder_of_the_package_goes_into_an_image():
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    taken = (DOCKER.parent / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{folder}" for folder in project["tool"]["setuptools"]["package-dir"].values()} <= set(taken)


def test_panels_have_names_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert one["x"] + one["w"] <= 24


def test_every_panel_asks_the_provisioned_datasource():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    provisioned = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    (source,) = provisioned["datasources"]
    assert variables["datasource"]["current"]["value"] == source["uid"]
    targets = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    assert {target["datasource"]["uid"] for target in targets} == {"${datasource}"}
    assert source["url"] == "http://prometheus:9090"
    for query in queries().values():
        assert set(re.findall(r"\$\w+", query)) <= {"$__rate_interval", *(f"${name}" for name in variables)}


def test_the_dashboard_lies_where_grafana_looks():
    (provider,) = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/covervlm.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])


def test_dashboard_alerts_and_autoscaler_ask_only_for_documented_metrics():
    documented = set(re.findall(r"^\| `(\w+)` \|", (DOCKER.parent / "docs/operations.md").read_text(), re.MULTILINE))
    documented |= {f"{name}_{part}" for name in documented for part in ("bucket", "sum", "count")}
    alerts = (DOCKER / "prometheus/alerts.yml").read_text()
    (metric,) = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    asked = " ".join([*queries().values(), alerts, metric["pods"]["metric"]["name"]])
    names = set(re.findall(r"\b(?:covervlm|process)_[a-z0-9_]+", asked))
    assert len(names) > 20
    assert names <= documented
