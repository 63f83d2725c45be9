"""Whole processes: a real agent on a simulated node, with and without a real API server."""
