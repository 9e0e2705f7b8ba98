"""What is computed along each ray: intervals, weights, colors, distances, and the losses of histograms."""
