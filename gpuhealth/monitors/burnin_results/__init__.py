"""Results of burn-ins stored on the node."""
