"""Commands that make models and bundles: train, study, export, quantize, calibrate, evaluate, data."""
