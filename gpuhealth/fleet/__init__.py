"""What is known of a whole cluster: a store of its objects, views and statistics."""
