"""The fleet: what its nodes say together, and what one node cannot do for itself."""
