"""The Kubernetes API and nothing else: client, watches, Events, evictions, leader election."""
