"""From what an encoder gave for a picture to token ids; knows neither pictures nor text."""
