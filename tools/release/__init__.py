"""What is made of the project: images, the host package, and the locks that pin their dependencies."""
