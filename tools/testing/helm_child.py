"""The child process of testing.helm: answers requests on standard input, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import helm_python


def serve(chart_path: str) -> None:
    """Answer requests until standard input ends."""
    chart = helm_python.Chart.load(chart_path)

    def cluster(kubeconfig: str, namespace: str) -> helm_python.Config:
        return helm_python.Config(kubeconfig_path=kubeconfig, namespace=namespace)

    def answer(action: str, **given: Any) -> Any:
        match action:
            case "render":
                return chart.render(given["values"], name="gpuhealth", namespace=given["namespace"])
            case "lint":
                return helm_python.lint(chart_path, given["values"], strict=True)
            case "metadata":
                return chart.metadata
        with cluster(given["kubeconfig"], given["namespace"]) as config:
            if action == "uninstall":
                return config.uninstall("gpuhealth", wait="hookOnly")
            act = config.install if action == "install" else config.upgrade
            return act(chart, "gpuhealth", given["values"], namespace=given["namespace"], wait="hookOnly")

    for line in sys.stdin:
        try:
            print(json.dumps({"result": answer(**json.loads(line))}), flush=True)
        except helm_python.HelmError as error:
            print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(sys.argv[1])
