"""Support for tests, demo and benchmarks: builders, a simulated node, clusters."""
