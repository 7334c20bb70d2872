"""Models that read regions found by an object detector: LXMERT and VisualBERT."""
