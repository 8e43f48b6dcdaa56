"""One module per kind of file, each with read and write."""
