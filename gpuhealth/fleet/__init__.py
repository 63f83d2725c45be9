"""The state of a whole cluster: a store of its API objects, views of them, and statistics."""
