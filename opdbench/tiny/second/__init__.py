"""The second edition of the embedded world, `tiny@2`: sharp pictures, and one private fault for each task."""
