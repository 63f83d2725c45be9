"""What people look at: Grafana dashboards and Prometheus rules, written in Python and generated from it."""
