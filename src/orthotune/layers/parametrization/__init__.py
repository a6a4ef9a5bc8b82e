"""From the parameter of an adapter to the rotation that it stands for, computed once and never stale."""
