"""SynthBirds, the embedded data set, painted."""
