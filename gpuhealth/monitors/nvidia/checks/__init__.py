"""Rules on the readings of GPUs and their driver."""
