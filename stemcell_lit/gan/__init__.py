"""The generator: networks, training, quality, selection and synthesis."""
