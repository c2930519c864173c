"""The ``polar`` command, one file for each group of verbs."""
