//! The clock seam: wall time, the boot clock, and store time made of both.
