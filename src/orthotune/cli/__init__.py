"""The command line. A package beside ``orthotune``, so that asking for help does not load torch."""
