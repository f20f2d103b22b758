"""Methods to compare with; each is one file."""
