"""One trial: a method on a fold with a seed, from patches to result.json."""
