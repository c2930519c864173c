"""The reward server (``polar serve``) and its client. Nothing is imported here: the client must do without torch."""
