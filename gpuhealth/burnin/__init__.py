"""burnin."""
