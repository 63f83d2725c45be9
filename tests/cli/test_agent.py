"""`gpuhealth agent`: starts with its settings, logs JSON, ends when told to."""

import json
import signal
import subprocess

from tests.cli.command import COMMAND, Node


def test_agent_logs_json_and_ends_on_request(gpu_node: Node) -> None:
    """Every line of the agent's log is a JSON object; SIGTERM ends it with 0."""
    gpu_node.configure("http: {host: 127.0.0.1, port: 0}\nkubernetes: {enabled: false}")
    with subprocess.Popen(
        [COMMAND, "agent", "--config", gpu_node.config], env=gpu_node.env(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        lines = [json.loads(process.stderr.readline())]
        while lines[-1]["event"] != "serving":
            lines.append(json.loads(process.stderr.readline()))
        process.send_signal(signal.SIGTERM)
        lines += map(json.loads, process.stderr)
        assert process.wait(timeout=60) == 0
    assert (lines[0]["event"], lines[0]["node"]) == ("agent starts", "gpu-node-17")
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert lines[-1]["event"] == "agent stops"


def test_agent_with_settings_it_cannot_use(node: Node) -> None:
    """An agent whose settings are wrong does not start: one sentence, exit 3."""
    node.configure("interval: often")
    said = node.run("agent")
    assert said.code == 3
    assert said.err.startswith(f"gpuhealth: configuration {node.config}: interval: ")
    assert said.err.count("\n") == 1
