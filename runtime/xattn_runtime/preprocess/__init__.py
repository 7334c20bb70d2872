"""From an image to pixel values, from a question to token ids; knows no graph and no model family."""
