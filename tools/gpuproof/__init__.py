"""Proves on a machine with real GPUs, without a network, what can be proved there: `tools/gpu-proof`."""
