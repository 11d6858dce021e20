"""What is written and read back: results, pictures with their settings, states; and how files are written."""
