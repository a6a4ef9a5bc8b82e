"""Files: the only atomic writer, JSON, tables, safetensors, locks, and what differs between operating systems."""
