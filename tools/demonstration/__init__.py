"""The demo: a simulated GPU node, three faults, and what an operator sees of them."""
