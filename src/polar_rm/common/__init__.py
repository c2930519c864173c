"""Small helpers that several verbs need."""
