"""The folders of PEFT, by version, and the folder of orthotune, which has the same layout."""
