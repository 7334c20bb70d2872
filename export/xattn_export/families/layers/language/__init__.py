"""Language models of Transformers as parts: vectors after a cache to vectors, whatever the vectors stand for."""
