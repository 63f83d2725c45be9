"""The agent's own process: whether a second agent was started on the node."""
