"""The Helm chart: rendered by Go's own template library, and held against the schemas of Kubernetes.

Neither helm nor a cluster is here. The chart uses no function of helm's own, so that Go's library renders it as helm
would; where helm is on the path, it lints the chart, too.
"""

import copy
import json
import shutil
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is missing: pip install 'hansa[dev]'")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is missing: pip install 'hansa[dev]'")
kubernetes = pytest.importorskip("kubernetes_validate", reason="missing: pip install 'hansa[dev]'")
try:
    from go_template import render_template
except (ImportError, OSError):  # it brings a library for Linux on x86-64
    pytest.skip("go-template is missing: pip install go-template", allow_module_level=True)

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "hansa"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
NEWEST = "1.34"

ALONE = {"coordinator": {"address": "fl.example.org"}}
PAIR = {
    "coordinator": {
        "address": "fl.example.org",
        "replicas": 2,
        "databaseSecret": "league-database",
        "keysSecret": "league-keys",
        "blobs": "s3://league/blobs",
        "blobsSecret": "league-s3",
        "storageKeySecret": "league-storage",
        "storageClass": "fast",
    },
    "metrics": {"serviceMonitor": True},
}
PARTY = {
    "coordinator": {"enabled": False},
    "agent": {
        "enabled": True,
        "tokenSecret": "invitation",
        "dataClaim": "tables",
        "storageKeySecret": "key",
        "words": ["--data", 'a "name": {{ x }}=/srv/hansa/rows.csv', "--allow", "linear-regression"],
    },
    "metrics": {"serviceMonitor": True},
}
OPEN = {"coordinator": {"address": "fl.example.org"}, "agent": {"enabled": True}, "networkPolicy": {"enabled": False}}
CASES = {"alone": ALONE, "pair": PAIR, "party": PARTY, "open": OPEN}


def merged(changes):
    values = copy.deepcopy(VALUES)
    for part, said in changes.items():
        values[part] |= said
    return values


@pytest.fixture
def render(tmp_path):
    """What a change of the values makes of the chart: its documents, by kind and name."""

    def rendered(changes):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
        said = {"Values": merged(changes), "Chart": chart, "Release": {"Name": "league", "Namespace": "hansa"}}
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(said), "utf-8")
        shared = (CHART / "templates" / "_pod.tpl").read_text("utf-8")
        found = {}
        for template in sorted((CHART / "templates").glob("*.yaml")):
            whole, out = tmp_path / template.name, tmp_path / "out"
            whole.write_text(shared + template.read_text("utf-8"), "utf-8")
            out.write_text("", "utf-8")
            render_template(str(whole), str(tmp_path / "values.yaml"), str(out))
            text = out.read_text("utf-8")
            assert "<no value>" not in text
            for document in filter(None, yaml.safe_load_all(text)):
                found[document["kind"], document["metadata"]["name"]] = document
        return found

    return rendered


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_knows_every_field(render, case):
    documents = render(CASES[case])
    assert documents
    for (kind, name), document in documents.items():
        if kind != "ServiceMonitor":  # of the operator of Prometheus, which has schemas of its own
            kubernetes.validate(document, NEWEST, strict=True)
            assert name.startswith("league-")


def test_a_field_that_kubernetes_does_not_know_would_be_seen(render):
    document = render(ALONE)["StatefulSet", "league-coordinator"]
    document["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRoot"] = True
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(document, NEWEST, strict=True)


@pytest.mark.parametrize(("case", "expected"), [
    ("alone", {"StatefulSet": 1, "Service": 2, "NetworkPolicy": 1, "PodDisruptionBudget": 1}),
    ("pair", {"StatefulSet": 1, "Service": 2, "NetworkPolicy": 1, "PodDisruptionBudget": 1, "ServiceMonitor": 1}),
    ("party", {"StatefulSet": 1, "Service": 1, "NetworkPolicy": 1, "ServiceMonitor": 1}),
    ("open", {"StatefulSet": 2, "Service": 3, "PodDisruptionBudget": 1}),
])  # fmt: skip
def test_what_is_made(render, case, expected):
    kinds = [kind for kind, _ in render(CASES[case])]
    assert {kind: kinds.count(kind) for kind in kinds} == expected


@pytest.mark.parametrize("case", CASES)
def test_no_container_is_root_writes_to_its_image_or_gains_rights(render, case):
    sets = [document for (kind, _), document in render(CASES[case]).items() if kind == "StatefulSet"]
    for pod in (document["spec"]["template"]["spec"] for document in sets):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod.get("initContainers", []) + pod["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("case", CASES)
def test_selectors_find_their_pods_and_ports(render, case):
    documents = render(CASES[case])
    pods = {name: of["spec"]["template"] for (kind, name), of in documents.items() if kind == "StatefulSet"}
    for (kind, _), document in documents.items():
        spec = document["spec"]
        if kind == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"].items()
            services = [of for (kind, _), of in documents.items() if kind == "Service"]
            assert [of for of in services if wanted <= of["metadata"]["labels"].items()]
            continue
        selector = spec.get("selector") or spec["podSelector"]
        wanted = selector.get("matchLabels", selector).items()
        (pod,) = [pod for pod in pods.values() if wanted <= pod["metadata"]["labels"].items()]
        named = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        ports = [port["targetPort"] for port in spec.get("ports", ())] if kind == "Service" else []
        ports += [port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]]
        assert set(ports) <= named


@pytest.mark.parametrize("case", CASES)
def test_what_is_mounted_is_there(render, case):
    sets = [document for (kind, _), document in render(CASES[case]).items() if kind == "StatefulSet"]
    for spec in (document["spec"] for document in sets):
        pod = spec["template"]["spec"]
        known = {volume["name"] for volume in pod["volumes"]}
        known |= {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
        for container in pod.get("initContainers", []) + pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= known


def test_the_words_of_an_owner_arrive_as_they_were_said(render):
    container = render(PARTY)["StatefulSet", "league-agent"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == ["--token", "$(HANSA_TOKEN)", *PARTY["agent"]["words"]]


def test_two_coordinators_share_database_and_keys_and_are_on_two_machines(render):
    spec = render(PAIR)["StatefulSet", "league-coordinator"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["replicas"] == 2
    environment = {entry["name"] for entry in pod["containers"][0]["env"]}
    assert environment == {"HANSA_HOME", "HANSA_DATABASE", "HANSA_BLOBS", "HANSA_STORAGE_KEY"}
    assert pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [container["name"] for container in pod["initContainers"]] == ["keys"]


@pytest.mark.parametrize("case", CASES)
def test_the_schema_of_the_values_takes_what_is_right(case):
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(merged(CASES[case]), SCHEMA)


@pytest.mark.parametrize("changes", [
    {},  # no address
    {"coordinator": {"address": "fl.example.org", "replicas": 2}},
    {"coordinator": {**PAIR["coordinator"], "databaseSecret": ""}},
    {"coordinator": {**PAIR["coordinator"], "replicas": 3}},
    {"coordinator": {"address": "fl.example.org", "storage": "a lot"}},
    {"coordinator": {"address": "fl.example.org", "adress": "x"}},
    {"networkPolicy": {"from": ["everywhere"]}, **ALONE},
])  # fmt: skip
def test_the_schema_of_the_values_refuses_what_cannot_work(changes):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(changes), SCHEMA)


@pytest.mark.skipif(not shutil.which("helm"), reason="helm is missing")
@pytest.mark.parametrize("case", CASES)
def test_helm_itself_finds_nothing(tmp_path, case):
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(CASES[case]), "utf-8")
    words = ["helm", "lint", "--strict", str(CHART), "-f", str(values)]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout
