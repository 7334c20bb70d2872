"""From what an encoder gave for an image to token ids; knows neither images nor text."""
