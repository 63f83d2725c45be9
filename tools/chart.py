"""Writes daemonset/chart from the manifests of the kustomization. Usage: python tools/chart.py [--check]

The templates are the manifests, comments included, with template syntax at the places that ROWS names; the components
become conditions. values.yaml is written by hand, but for the defaults, which come from the manifests, too. The schema
of the values is made from the types in charting/values.py and from the agent's settings.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from charting import values
from charting.editing import Source
from charting.patches import merge

ROOT = Path(__file__).parents[1]
BASE = ROOT / "daemonset"
CHART = BASE / "chart"
COMMAND = "python tools/chart.py"
POD = "spec.template.spec"
TEMPLATE_POD = "template.spec"


class Row(NamedTuple):
    """One place of a manifest that is a value of the chart, or depends on one."""

    file: str
    document: str  # kind, or kind/name
    path: str
    how: str  # "is": the text takes the place of what is there; "before", "append": the text is added
    text: str
    default: str = ""  # the value in values.yaml whose default is what was there


def _scalar(file: str, document: str, path: str, value: str) -> Row:
    return Row(file, document, path, "is", f"{{{{ .Values.{value} }}}}", value)


def _block(file: str, document: str, path: str, value: str, indent: int) -> Row:
    return Row(file, document, path, "is", f" {{{{- toYaml .Values.{value} | nindent {indent} }}}}", value)


def _more(value: str, indent: int, key: str = "") -> str:
    """Lines that are there only if a value is not empty."""
    head = f"{key}: " if key else ""
    return f"{{{{- with .Values.{value} }}}}\n{head}{{{{- toYaml . | nindent {indent} }}}}\n{{{{- end }}}}"


def _pod(file: str, document: str, pod: str, container: str, image: str, indent: int) -> tuple[Row, ...]:
    """What every pod has: image, pull policy and pull secrets."""
    at = f"{pod}.containers.{container}"
    return (
        Row(file, document, f"{at}.image", "is", f'{{{{ include "gpuhealth.image" (list . .Values.{image}) }}}}'),
        Row(
            file,
            document,
            f"{at}.args",
            "before",
            "{{- with .Values.imagePullPolicy }}\nimagePullPolicy: {{ . }}\n{{- end }}",
        ),
        Row(file, document, f"{pod}.containers", "before", _more("imagePullSecrets", indent, "imagePullSecrets")),
    )


_NODE_LABELS = """{{- range $label, $values := .Values.agent.nodeLabels }}
- matchExpressions:
    {{- if $values }}
    - {key: {{ $label | quote }}, operator: In, values: {{ toJson $values }}}
    {{- else }}
    - {key: {{ $label | quote }}, operator: Exists}
    {{- end }}
{{- end }}"""
_TERMS = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
_PREFLIGHT_TAINT = '{{ include "gpuhealth.preflightTaint" . | quote }}'

ROWS = (
    *_pod("agent.yaml", "DaemonSet", POD, "agent", "image", 8),
    _scalar("agent.yaml", "DaemonSet", f"{POD}.priorityClassName", "agent.priorityClassName"),
    Row("agent.yaml", "DaemonSet", f"{POD}.containers.agent.resources", "is",
        ' {{- include "gpuhealth.agentResources" . | nindent 12 }}', "agent.resources"),
    Row("agent.yaml", "DaemonSet", f"{POD}.{_TERMS}", "append", _NODE_LABELS),
    *_pod("controller.yaml", "Deployment", POD, "controller", "image", 8),
    _scalar("controller.yaml", "Deployment", "spec.replicas", "controller.replicas"),
    _scalar("controller.yaml", "Deployment", f"{POD}.priorityClassName", "controller.priorityClassName"),
    _block("controller.yaml", "Deployment", f"{POD}.containers.controller.resources", "controller.resources", 12),
    Row("controller.yaml", "Deployment", f"{POD}.containers", "before",
        _more("controller.nodeSelector", 8, "nodeSelector")),
    Row("controller.yaml", "Deployment", f"{POD}.containers", "before",
        _more("controller.tolerations", 8, "tolerations")),
    *_pod("preflight.yaml", "DaemonSet", POD, "preflight", "burninImage", 8),
    _scalar("preflight.yaml", "DaemonSet", f"{POD}.priorityClassName", "preflight.priorityClassName"),
    _block("preflight.yaml", "DaemonSet", f"{POD}.containers.preflight.resources", "preflight.resources", 12),
    Row("preflight.yaml", "DaemonSet", f"{POD}.tolerations.gpuhealth\\.io/preflight.key", "is", _PREFLIGHT_TAINT),
    Row("preflight.yaml", "DaemonSet", f"{POD}.tolerations", "append", _more("preflight.tolerations", 8)),
    *_pod("burnin.yaml", "PodTemplate", TEMPLATE_POD, "burnin", "burninImage", 6),
    _block("burnin.yaml", "PodTemplate", f"{TEMPLATE_POD}.containers.burnin.resources", "burnin.resources", 10),
    Row("burnin.yaml", "PodTemplate", f"{TEMPLATE_POD}.tolerations", "append", _more("burnin.tolerations", 6)),
    Row("settings.yaml", "ConfigMap", "data.gpuhealth\\.yaml", "is",
        '| {{- toYaml .Values.settings | nindent 4 }}'),
    Row("crds/*.yaml", "CustomResourceDefinition", "metadata.name", "before",
        'annotations:\n  helm.sh/resource-policy: keep  # its objects, too, when the release is uninstalled'),
    Row("admission/nodes.yaml", "ValidatingAdmissionPolicy/gpuhealth-nodes", "spec.variables.mode.expression", "is",
        '{{ .Values.settings.mode | default "taint" | squote | quote }}'),
    Row("admission/nodes.yaml", "ValidatingAdmissionPolicy/gpuhealth-nodes", "spec.variables.preflightTaint.expression",
        "is", '{{ include "gpuhealth.preflightTaint" . | squote | quote }}'),
    Row("admission/nodes.yaml", "ValidatingAdmissionPolicy/gpuhealth-nodes", "spec.variables.cordonReason.expression",
        "is", '{{ include "gpuhealth.cordonReason" . | squote | quote }}'),
    Row("admission/node-status.yaml", "ValidatingAdmissionPolicy", "spec.variables.conditions.expression", "is",
        '{{ include "gpuhealth.conditions" . | quote }}'),
    Row("admission/burnins.yaml", "ValidatingAdmissionPolicy/gpuhealth-burnins", "spec.variables.image.expression",
        "is", '{{ include "gpuhealth.image" (list . .Values.burninImage) | squote | quote }}'),
    Row("examples/quarantinebudget.yaml", "QuarantineBudget", "metadata.name", "is",
        "{{ .Values.quarantineBudget.name }}", "quarantineBudget.name"),
    Row("examples/quarantinebudget.yaml", "QuarantineBudget", "spec", "is",
        " {{- toYaml .Values.quarantineBudget.spec | nindent 2 }}", "quarantineBudget.spec"),
    Row("components/prometheus/podmonitor.yaml", "PodMonitor", "metadata.labels", "append",
        "{{- with .Values.prometheus.labels }}\n{{- toYaml . | nindent 4 }}\n{{- end }}"),
    Row("components/prometheus/rules.yaml", "PrometheusRule", "metadata.labels", "append",
        "{{- with .Values.prometheus.labels }}\n{{- toYaml . | nindent 4 }}\n{{- end }}"),
)  # fmt: skip

CONDITIONS = {
    "crds/": ".Values.crds.enabled",
    "preflight.yaml": ".Values.preflight.enabled",
    "burnin.yaml": ".Values.burnin.enabled",
    "admission/": '(include "gpuhealth.admissionPolicies" .)',
    "examples/quarantinebudget.yaml": '(include "gpuhealth.quarantineBudget" .)',
}
"""The files that can be left out, and when they are part of a release."""
COMPONENTS = {
    "runtime-class": ".Values.runtimeClass.enabled",
    "unprivileged": ".Values.unprivileged.enabled",
    "secure-metrics": ".Values.secureMetrics.enabled",
    "prometheus": ".Values.prometheus.enabled",
    "aks": '(eq .Values.platform "aks")',
    "gke": '(eq .Values.platform "gke")',
    "openshift": '(eq .Values.platform "openshift")',
}
"""The components that the chart has, and when they are part of a release."""
_NAMESPACE = re.compile(
    r"(?P<before>\bnamespace: |system:serviceaccount:|kubernetes\.io/metadata\.name: )gpuhealth(?P<after>$|[:},\s])",
    re.MULTILINE,
)


def files() -> dict[Path, str]:
    """The text of every file of the chart that is made."""
    made = {CHART / "templates" / name: text for name, text in _templates()}
    made[CHART / "values.schema.json"] = json.dumps(values.schema(), indent=2, sort_keys=True) + "\n"
    made[CHART / "values.yaml"] = _values((CHART / "values.yaml").read_text(encoding="utf-8"))
    return made


# --- templates --------------------------------------------------------------------------------------------------------


def _templates() -> Iterator[tuple[str, str]]:
    patches = _patches()
    for file in sources():
        text = (BASE / file).read_text(encoding="utf-8")
        body = "\n---\n".join(_document(file, each, patches) for each in text.rstrip("\n").split("\n---\n"))
        yield file, _conditional(file, body)


def sources() -> list[str]:
    """The manifests that the chart has, in the order of the kustomizations. The namespace is the release's."""
    kustomizations = [".", "admission", *(f"components/{name}" for name in COMPONENTS)]
    found = [file for folder in kustomizations for file in _resources(Path(folder)) if file != "namespace.yaml"]
    return [*found, "examples/quarantinebudget.yaml"]


def _resources(folder: Path) -> Iterator[str]:
    for name in _kustomization(folder).get("resources", ()):
        if (BASE / folder / name).is_dir():
            yield from _resources(folder / name)
        else:
            yield (folder / name).as_posix()


def _kustomization(folder: Path) -> Any:
    return yaml.safe_load((BASE / folder / "kustomization.yaml").read_text(encoding="utf-8"))


def _patches() -> dict[tuple[str, str], list[tuple[str, str]]]:
    """The patches of components by kind and name of the object that they change, each with its condition."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for component, condition in COMPONENTS.items():
        folder = Path("components") / component
        for patch in _kustomization(folder).get("patches", ()):
            for text in (BASE / folder / patch["path"]).read_text(encoding="utf-8").split("\n---\n"):
                data = yaml.safe_load(text)
                target = patch.get("target") or {"kind": data["kind"], "name": data["metadata"]["name"]}
                found.setdefault((target["kind"], target["name"]), []).append((text, condition))
    return found


def _document(file: str, text: str, patches: dict[tuple[str, str], list[tuple[str, str]]]) -> str:
    source = Source(text)
    for row in rows(file, source.data):
        _apply(source, row)
    for patch, condition in patches.get((source.data["kind"], source.data["metadata"]["name"]), ()):
        merge(source, patch, condition)
    return _NAMESPACE.sub(r"\g<before>{{ .Release.Namespace }}\g<after>", source.edited())


def rows(file: str, document: Any) -> list[Row]:
    """The rows of a document in a file."""
    names = {document["kind"], f"{document['kind']}/{document['metadata']['name']}"}
    return [row for row in ROWS if Path(file).match(row.file) and row.document in names]


def _apply(source: Source, row: Row) -> None:
    try:
        if row.how == "is":
            source.replace(row.path, row.text)
        elif row.how == "before":
            source.insert_before(row.path, row.text)
        else:
            source.append(source.node(row.path), row.text)
    except (KeyError, AssertionError) as error:
        raise SystemExit(f"{row.file}, {row.document}: {error}; change ROWS in tools/chart.py") from None


def _conditional(file: str, body: str) -> str:
    head = f"{{{{- /* Made from daemonset/{file} by `{COMMAND}`; changes made here are lost. */ -}}}}\n"
    conditions = {**CONDITIONS, **{f"components/{name}/": condition for name, condition in COMPONENTS.items()}}
    found = [condition for prefix, condition in conditions.items() if file.startswith(prefix)]
    return f"{head}{{{{- if {found[0]} }}}}\n{body}\n{{{{- end }}}}\n" if found else f"{head}{body}\n"


# --- values -----------------------------------------------------------------------------------------------------------


def _values(text: str) -> str:
    """values.yaml with the defaults of the manifests."""
    source = Source(text)
    for path, value in _defaults():
        source.replace(path, _inline(value))
    settings = yaml.safe_load((BASE / "settings.yaml").read_text(encoding="utf-8"))["data"]["gpuhealth.yaml"]
    source.replace("settings", "\n" + "\n".join(f"  {line}" if line else "" for line in settings.rstrip().splitlines()))
    return source.edited(template=False)


def _defaults() -> Iterator[tuple[str, Any]]:
    """The values that have their default from a manifest."""
    for file in sources():
        for text in (BASE / file).read_text(encoding="utf-8").split("\n---\n"):
            source = Source(text)
            for row in rows(file, source.data):
                if row.default:
                    yield row.default, source.value(row.path)
                elif row.path.endswith(".image") and row.file in {"agent.yaml", "burnin.yaml"}:
                    name = "image" if row.file == "agent.yaml" else "burninImage"
                    yield f"{name}.repository", re.sub(r":[^:/]*$", "", source.value(row.path))


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n").strip()


def main() -> None:
    """Write the files, or with --check name those that are stale."""
    made = files()
    there = set((CHART / "templates").rglob("*.yaml"))
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    stale += sorted(there - made.keys())
    if "--check" in sys.argv[1:]:
        if stale:
            raise SystemExit(f"{', '.join(str(path.relative_to(ROOT)) for path in stale)}: stale, run {COMMAND}")
        return
    for path in there - made.keys():
        path.unlink()
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
