"""Reader studies: human readers on the test images, with and without a model's help."""
