"""`gpuhealth agent` starts with its settings, logs JSON and stops on a signal."""

import json
import signal
import socket
import subprocess

import pytest
from testing.command import Node
from testing.processes import COMMAND


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
    assert [line["node"] for line in lines if line["event"] == "agent started"] == ["gpu-node-17"]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert lines[-1]["event"] == "agent stopped"


def test_agent_with_settings_it_cannot_use(node: Node) -> None:
    """An agent whose settings are wrong does not start: one sentence, exit 3."""
    node.configure("interval: often")
    said = node.run("agent")
    assert said.code == 3
    assert said.err.startswith(f"gpuhealth: configuration {node.config}: interval: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("http", "sentence"),
    [
        ("{host: 127.0.0.1, port: PORT}", "cannot serve at 127.0.0.1 port PORT: Address already in use;"),
        ("{host: no.such.host.invalid}", "cannot serve at no.such.host.invalid port 9475: "),
        ("{tls: {cert: /absent.crt, key: /absent.key}, port: 0}", "TLS cannot be served with /absent.crt"),
    ],
)
def test_agent_that_cannot_serve(gpu_node: Node, http: str, sentence: str) -> None:
    """An address or a certificate that cannot be had ends the agent with one sentence after its log, exit 3."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        gpu_node.configure(f"http: {http.replace('PORT', port)}\nkubernetes: {{enabled: false}}")
        said = gpu_node.run("agent")
    assert said.code == 3
    *logged, last = said.err.splitlines()
    assert [json.loads(line)["level"] for line in logged] == ["info"] * len(logged)
    assert last.startswith(f"gpuhealth: {sentence.replace('PORT', port)}")
