"""What a measurement leaves: pages, plots, schemas, and how reports are written."""
