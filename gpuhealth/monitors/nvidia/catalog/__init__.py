"""Facts about XIDs, SXids, recovery actions and GPU models."""
