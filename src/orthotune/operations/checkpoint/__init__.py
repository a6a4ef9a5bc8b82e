"""The files of a base model, merged with an adapter tensor by tensor, without loading the model."""
