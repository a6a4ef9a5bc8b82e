"""PEFT's folders, by version, and orthotune's own, which has the same layout."""
