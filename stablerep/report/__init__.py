"""What was measured, on one HTML page that holds its pictures and charts, so that it can be mailed."""
