"""Commands that answer: caption, vqa, classify, retrieve, sentiment."""
