"""The command: the only place that prints and exits. One file a command; main.py puts them together."""
