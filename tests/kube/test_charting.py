"""How manifests become templates: only the named places change, and a component's patch becomes conditions."""

from __future__ import annotations

import chart
import pytest
from charting.editing import Source
from charting.patches import merge

POD = """\
spec:  # of the pod
  hostPID: true
  containers:
    - name: agent
      image: agent:1  # ours
      probe: {path: /healthz}
      volumeMounts:
        - {name: dev, mountPath: /dev}
        # The same volume once more.
        - {name: dev, mountPath: /host/dev}
  volumes:
    - name: dev
      hostPath: {path: /dev}
"""
PATCH = """\
kind: Pod
spec:
  hostPID: null
  runtimeClassName: nvidia
  containers:
    - name: agent
      image: agent:2
      probe: {scheme: HTTPS}
      volumeMounts:
        - {mountPath: /dev, $patch: delete}
        - {mountPath: /absent, $patch: delete}
  volumes:
    - name: more
      emptyDir: {}
"""
PATCHED = """\
spec:  # of the pod
  {{- if not X }}
  hostPID: true
  {{- end }}
  {{- if X }}
  runtimeClassName: nvidia
  {{- end }}
  containers:
    - name: agent
      image: {{ if X }}agent:2{{ else }}agent:1{{ end }}  # ours
      probe: {path: /healthz{{ if X }}, scheme: HTTPS{{ end }}}
      volumeMounts:
        {{- if not X }}
        - {name: dev, mountPath: /dev}
        {{- end }}
        # The same volume once more.
        - {name: dev, mountPath: /host/dev}
  volumes:
    - name: dev
      hostPath: {path: /dev}
    {{- if X }}
    - name: more
      emptyDir: {}
    {{- end }}
"""


def test_a_strategic_merge_patch() -> None:
    """Values, keys and items are changed, added and removed where the API server would, comments stay."""
    source = Source(POD)
    merge(source, PATCH.replace("kind: Pod\n", ""), "X")
    assert source.edited() == PATCHED


def test_a_json_patch() -> None:
    """An item is added to the end of a list; no other operation is understood."""
    source = Source(POD)
    merge(source, "- {op: add, path: /spec/volumes/-, value: {name: more}}", "X")
    assert source.edited().endswith("    {{- if X }}\n    - name: more\n    {{- end }}\n")
    with pytest.raises(AssertionError, match="only an item can be added"):
        merge(Source(POD), "- {op: replace, path: /spec/hostPID, value: false}", "X")


def test_a_value_of_the_chart_is_not_patched() -> None:
    """What a patch changes below a value of the chart would be lost, and is left to the template."""
    source = Source(POD)
    source.replace("spec.containers.agent.probe", "{{ .Values.probe }}")
    merge(source, PATCH.replace("kind: Pod\n", ""), "X")
    assert "probe: {{ .Values.probe }}\n" in source.edited()


def test_replaced_and_inserted() -> None:
    """A block takes the place of the old one, lines come before a key, and text like template syntax is printed."""
    source = Source("a:\n  b:  # comment\n    c: 1\n    d: '{{ x }}'\n  e: 2\nf: '{{ y }}'\n")
    source.replace("a.b", " {{- toYaml .Values.b }}")
    source.insert_before("a.e", "{{- if X }}\nnew: 1\n{{- end }}")
    assert source.edited() == (
        "a:\n  b: {{- toYaml .Values.b }}\n  {{- if X }}\n  new: 1\n  {{- end }}\n  e: 2\nf: '{{ \"{{\" }} y }}'\n"
    )


def test_a_place_that_is_gone() -> None:
    """A manifest without a place that the table names ends the tool with a sentence that says where."""
    row = chart.Row("agent.yaml", "Pod", "spec.priority", "is", "x")
    with pytest.raises(SystemExit, match=r"agent\.yaml, Pod: .*there is no priority.*change ROWS in tools/chart\.py"):
        chart._apply(Source(POD), row)
