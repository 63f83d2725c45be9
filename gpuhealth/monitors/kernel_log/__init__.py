"""The host's own messages in the kernel log, and how completely the log is read."""
