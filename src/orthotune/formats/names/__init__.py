"""Names of layers in files: how tools write them, and which module of a model each one means."""
