"""What is read: the only code that touches the driver, the kernel log, /proc and /sys. One file a source."""
