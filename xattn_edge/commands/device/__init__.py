"""Commands about a device and a bundle on it: providers, tune, profile, verify, inspect, compare."""
