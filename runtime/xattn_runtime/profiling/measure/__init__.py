"""Measuring inside one process: passes, nodes, limits of the device, sensors, and the numbers made of them."""
