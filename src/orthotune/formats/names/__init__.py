"""Names of layers in files: how tools spell them, and which module of a model a name refers to."""
