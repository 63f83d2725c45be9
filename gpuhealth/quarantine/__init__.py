"""Taking our node out of service: budget slots, marks on the Node, the report."""
