"""The evidence for the paper's claims, as steps that continue after an interruption. See run.py."""
