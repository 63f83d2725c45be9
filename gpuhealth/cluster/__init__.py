"""The Kubernetes API and nothing else: client, marks of the Node, places in budgets, reports, Events, evictions."""
