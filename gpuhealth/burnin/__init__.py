"""Active tests: what only shows when a GPU is made to work. Only the workers import torch."""
