"""What a user may set: bounds of settings, words of the command line, the composed configuration."""
