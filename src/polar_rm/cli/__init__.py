"""The ``polar`` command, a file for each group of verbs."""
