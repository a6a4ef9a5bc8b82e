"""The command line: one file per verb, which parses, calls and prints. Nothing heavy is imported before a verb runs."""
