"""Networks of the stages, and the hierarchy that is constrained in time."""
