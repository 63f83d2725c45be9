"""The interface to other programs: custom resources, and the names of marks and metrics."""
