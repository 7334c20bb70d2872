"""Vision-language models whose image tokens stand in the text of a decoder: one frame, and a row for each."""
