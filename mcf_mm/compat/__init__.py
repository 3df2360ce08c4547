"""Work with the versions of other packages that are installed."""
