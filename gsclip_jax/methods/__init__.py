"""One folder or file a method."""
