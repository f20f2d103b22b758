"""Points into pictures: cameras, views, and the Open3D process that draws."""
