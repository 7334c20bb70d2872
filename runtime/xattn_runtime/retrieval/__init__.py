"""An index of embeddings in a file, and the search for the nearest of them."""
