"""The host apart from its GPUs: space and inodes of its disks."""
