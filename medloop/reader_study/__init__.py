"""Reader studies: what people said of the test images, with and without a model's help."""
