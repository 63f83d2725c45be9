"""Agents to look at."""

from testing.agents import impatient, make_agent, module_node, node

__all__ = ["impatient", "make_agent", "module_node", "node"]
