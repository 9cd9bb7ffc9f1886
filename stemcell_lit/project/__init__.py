"""A folder of the user's own for one set of classes: settings to change, and the commands to begin with."""
