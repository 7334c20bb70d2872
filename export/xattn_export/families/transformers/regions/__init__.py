"""Models that read regions from an object detector: LXMERT and VisualBERT."""
