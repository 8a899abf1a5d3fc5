"""What a detector's scores, boxes and distributions know: statistics and one HTML report."""
