"""Files: the only atomic writer, JSON, tables, safetensors, locks, and the differences between operating systems."""
