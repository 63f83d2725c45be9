"""What `tools/chart.py` makes the Helm chart with."""
