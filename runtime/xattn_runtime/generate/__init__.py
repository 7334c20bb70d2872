"""From the image's cross keys and values to token ids; knows neither pictures nor text."""
