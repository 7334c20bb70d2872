"""Writing the folder of a bundle, and reading its parts."""
