"""What a scan will cost before it is paid for: a short calibration, an estimate, a simulated cluster."""
