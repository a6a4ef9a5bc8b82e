"""Control pictures: what each kind shows, how it is made of a picture or read from a file."""
