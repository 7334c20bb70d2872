"""What several commands share: the console, options, and files that they read and write."""
