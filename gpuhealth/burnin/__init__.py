"""Burn-in: active tests that find faults only visible while a GPU works. Only the worker processes import torch."""
