"""Images to edit: pairs of references and targets, masks for inpainting, and their encodings."""
