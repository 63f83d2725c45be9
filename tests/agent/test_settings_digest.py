"""The report names the settings file whose settings the agent uses, for `gpuhealth doctor`."""

from __future__ import annotations

from pathlib import Path

from testing.command import Node

from gpuhealth.agent.agent import Agent
from gpuhealth.monitors.settings import load
from gpuhealth.runtime.settings_file import digest


def test_the_digest_of_settings_in_use(tmp_path: Path) -> None:
    """A change that is taken up changes the digest; one that needs a restart, or is refused, does not."""
    node = Node(tmp_path)
    original = node.config.read_text()
    agent = Agent(load(node.config), node.config)

    def change(more: str) -> str:
        replacement = tmp_path / "new.yaml"
        replacement.write_text(f"{original}{more}\n")
        replacement.replace(node.config)  # another file of this name, as of a ConfigMap
        agent._reload_if_changed()
        return agent._report_facts().settings_digest

    try:
        assert agent._report_facts().settings_digest == digest(node.config.read_bytes())
        used = change("mode: observe")
        assert used == digest(node.config.read_bytes())
        assert change("mode: observe\nhttp: {port: 1234}") == used
        assert change("mode: nonsense") == used
    finally:
        agent._close()
