"""From the tokenizer that Transformers loads to the one that a bundle holds, and the proof that they agree."""
