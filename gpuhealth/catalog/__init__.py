"""Facts: XIDs, SXids, recovery actions, GPU models; and the kernel-log lines that carry them."""
