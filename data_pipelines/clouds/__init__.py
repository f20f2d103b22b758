"""Point clouds: every file format, cleaning, centring in float64, sampling."""
