"""The network: backbone, neck, head, and the detector that joins them."""
