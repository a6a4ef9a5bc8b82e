"""What is not collected here: modules without examples that skip their importers when their library is missing.

Collected for examples, such a module would stay half imported, and its importers would fail instead of being skipped.
"""

collect_ignore = ["gptqmodel_layers.py", "inc.py"]
