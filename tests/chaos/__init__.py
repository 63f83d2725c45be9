"""The cluster half under faults: killed at every step, refused in every way, and raced."""
