"""The controller of a cluster: leader election, and the duties of the leader."""
