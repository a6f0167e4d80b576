"""Simulated participant and scanner: sees only the pictures that were shown, writes only DICOM files."""
