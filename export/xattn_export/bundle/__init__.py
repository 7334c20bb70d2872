"""Writing the folder of a bundle, and reading what one is made of."""
