"""The wire formats of reward servers, read and written."""
