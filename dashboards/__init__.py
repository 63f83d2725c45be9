"""Grafana dashboards and Prometheus alert rules, written in Python, from which their files are generated."""
