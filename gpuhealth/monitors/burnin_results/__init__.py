"""Results of burn-ins that lie on the node."""
