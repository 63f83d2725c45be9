"""What others rely on: custom resources, and the names of marks and metrics."""
