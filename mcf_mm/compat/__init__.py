"""What mcf_mm does about the versions of other packages."""
