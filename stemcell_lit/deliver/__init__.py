"""One model of a folder of results, to use and to hand on."""
