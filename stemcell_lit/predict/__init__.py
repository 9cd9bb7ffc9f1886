"""Class maps of whole movies by a trained hierarchy."""
