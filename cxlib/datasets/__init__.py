"""Images with labels: CUB-200-2011's layout, ImageNet folders, and SynthBirds, which makes its own."""
