"""Findings of the controller's comparison of all GPUs of a model."""
